"""Typed rows of Parquet and Arrow: nothing is coerced, and damage is told."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tasks.dataset.readers import BadRow, Row, Rules
from tasks.dataset.tables import read_arrow, read_parquet
from tasks.lineage.stage import StageError

MOMENT = datetime.datetime(2026, 8, 31, 10, tzinfo=datetime.UTC)
ROWS: list[dict[str, Any]] = [
    {
        "id": n,
        "text": f"ü {n}",
        "turns": [{"role": "user", "content": "hi"}],
        "at": MOMENT,
        "no": None,
    }
    for n in range(600)
]
RULES = Rules(100, True, None)


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    target = io.BytesIO()
    parquet.write_table(table, target, **options)
    return target.getvalue()


def as_arrow(table: pa.Table, *, stream: bool) -> bytes:
    target = io.BytesIO()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue()


def read(content: bytes, rules: Rules = RULES) -> list[Row | BadRow]:
    reader = read_parquet if content[:4] == b"PAR1" else read_arrow
    return list(reader(io.BytesIO(content), "a.file", rules))


TABLE = pa.Table.from_pylist(ROWS)
FILES = {
    "parquet": as_parquet(TABLE, row_group_size=250),
    "arrow file": as_arrow(TABLE, stream=False),
    "arrow stream": as_arrow(TABLE, stream=True),
}


@pytest.mark.parametrize("content", FILES.values(), ids=list(FILES))
def test_rows_keep_their_types(content: bytes) -> None:
    rows = read(content)
    assert [row.values for row in rows if isinstance(row, Row)] == ROWS
    assert [row.line for row in rows] == list(range(1, 601))
    assert {(row.byte, row.end) for row in rows} == {(None, None)}


def test_datasets_writes_what_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"text": "one"}, {"text": "two"}]).save_to_disk(str(tmp_path / "set"))
    (file,) = (tmp_path / "set").glob("*.arrow")
    assert [row.values for row in read(file.read_bytes()) if isinstance(row, Row)] == [
        {"text": "one"}, {"text": "two"},
    ]  # fmt: skip


def test_times_finer_than_a_microsecond_and_categories() -> None:
    table = pa.table(
        {
            "at": pa.array([1_000_000_000_000_000_001], pa.timestamp("ns")),
            "class": pa.array(["a"]).dictionary_encode(),
            "large": pa.array(["b"], pa.large_string()),
        }
    )
    (row,) = read(as_parquet(table))
    assert isinstance(row, Row)
    assert row.values == {
        "at": datetime.datetime(2001, 9, 9, 1, 46, 40),
        "class": "a",
        "large": "b",
    }


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("a\0b", "nul", "a text holds the character U+0000"),
        ("a\u200bb", "hidden_character", "U+200B in column 'text'"),
        ("x" * 101, "line_too_long", "105 bytes, more than 100"),
    ],
)
def test_a_row_is_held_to_the_same_rules(text: str, reason: str, detail: str) -> None:
    table = pa.Table.from_pylist([{"text": "one"}, {"text": text}, {"text": "two"}])
    _, bad, good = read(as_parquet(table))
    assert isinstance(bad, BadRow)
    assert isinstance(good, Row)
    assert (bad.line, bad.byte, bad.reason, bad.detail) == (2, None, reason, detail)


def test_a_string_that_is_not_utf8_costs_its_row() -> None:
    strings = pa.array([b"one", b"K\xf6ln", b"two"]).view(pa.string())
    table = pa.table({"text": strings})
    for content in (as_parquet(table), as_arrow(table, stream=True)):
        _, bad, good = read(content)
        assert isinstance(bad, BadRow)
        assert (bad.line, bad.reason) == (2, "not_utf8")
        assert isinstance(good, Row)


@pytest.mark.parametrize("content", FILES.values(), ids=list(FILES))
def test_a_cut_file_is_damaged(content: bytes) -> None:
    with pytest.raises(
        StageError, match=r"^a.file: damaged behind row \d+ \(.*\); make the file ag"
    ):
        read(content[: len(content) // 2])


def test_a_footer_of_garbage() -> None:
    with pytest.raises(StageError, match=r"a.file: damaged behind row 0"):
        read(FILES["parquet"][:-20] + b"x" * 16 + b"PAR1")


def test_columns_are_compared_once() -> None:
    with pytest.raises(
        StageError, match=r"a.file:1: the columns are id, text, turns, at, no, but p"
    ):
        read(FILES["parquet"], Rules(100, True, ["id", "text"]))
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(StageError, match=r"a.file:1: column 'a' comes twice"):
        read(as_arrow(twice, stream=True))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 20000), st.binary(min_size=1, max_size=8)), max_size=4),
)
def test_whatever_the_bytes_are_rows_are_numbered_or_the_file_is_refused(
    kind: str, edits: list[tuple[int, bytes]]
) -> None:
    content = FILES[kind]
    for place, added in edits:
        at = place % len(content)
        content = content[:at] + added + content[at + len(added) :]
    try:
        rows = read(content)
    except StageError:
        return
    assert [row.line for row in rows] == list(range(1, len(rows) + 1))
