"""Every fault of a file, with its reason, line and byte; and that no row goes missing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tasks.dataset import readers
from tasks.dataset.containers import BUFFER_BYTES
from tasks.dataset.readers import BadRow, Row, Rules
from tasks.lineage.stage import StageError


def read_jsonl(path: Path, limit: int) -> Iterator[Row | BadRow]:
    with path.open("rb", buffering=BUFFER_BYTES) as file:
        yield from readers.read_jsonl(file, path.name, Rules(limit, True, None))


def read_csv(path: Path, limit: int, delimiter: str = ",") -> Iterator[Row | BadRow]:
    with path.open("rb") as file:
        yield from readers.read_separated(file, path.name, delimiter, Rules(limit, True, None))


GOOD = b'{"id":"1","text":"one"}\n'
LAST = b'{"id":"2","text":"two"}\n'
LIMIT = 200

JSONL_FAULTS = {
    "not_utf8": b'{"id":"x","text":"K\xf6ln"}',
    "byte_order_mark": b'\xef\xbb\xbf{"id":"x"}',
    "nul": b'{"id":"x","text":"a\x00b"}',
    "lone_surrogate": b'{"id":"x","text":"\\ud83d"}',
    "truncated_json": b'{"id":"x","text":"cut o',
    "invalid_json": b"garbage",
    "duplicate_key": b'{"id":"x","id":"y"}',
    "not_finite": b'{"id":"x","text":NaN}',
    "not_an_object": b"null",
    "line_too_long": b'{"id":"' + b"x" * LIMIT + b'"}',
    "empty_line": b"  ",
    "too_deep": b'{"id":' + b"[" * 65 + b"]" * 65 + b"}",
    "hidden_character": '{"id":"x","text":"a\u202eb"}'.encode(),
}


@pytest.mark.parametrize(("reason", "line"), JSONL_FAULTS.items(), ids=list(JSONL_FAULTS))
def test_a_fault_costs_its_own_line_only(tmp_path: Path, reason: str, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + line + b"\n" + LAST)
    before, bad, after = read_jsonl(path, LIMIT)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.line, bad.byte) == (reason, 2, len(GOOD))
    assert bad.end == after.byte == len(GOOD) + len(line) + 1
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert (after.line, after.values) == (3, {"id": "2", "text": "two"})


@pytest.mark.parametrize("value", ["null", "42", "true", '"text"', "[1,2]"])
def test_a_line_that_is_no_object(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(value)
    (bad,) = read_jsonl(path, LIMIT)
    assert isinstance(bad, BadRow)
    assert bad.reason == "not_an_object"


def test_line_ends_and_a_last_line_without_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id":"1"}\r\n{"id":"2"}')
    rows = list(read_jsonl(path, LIMIT))
    assert [row.values["id"] for row in rows if isinstance(row, Row)] == ["1", "2"]


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id":"a\u2028b\u2029c"}\n', encoding="utf-8")
    (row,) = read_jsonl(path, LIMIT)
    assert isinstance(row, Row)


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = b'{"id":"' + b"x" * (LIMIT - 9) + b'"}'
    assert len(line) == LIMIT
    path.write_bytes(line + b"\n" + line + b" \n" + line)
    kinds = [type(row).__name__ for row in read_jsonl(path, LIMIT)]
    assert kinds == ["Row", "BadRow", "Row"]


def test_an_overlong_line_is_never_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id":"')
        for _ in range(300):
            file.write(b"x" * 100_000)
        file.write(b'"}\n' + LAST)
    tracemalloc.start()
    bad, good = read_jsonl(path, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bad, BadRow)
    assert bad.detail == f"30000010 bytes, more than {LIMIT}"
    assert (good.line, good.byte) == (2, 30_000_010)
    assert peak < 2_000_000


HEADER = b"id,text\n"

CSV_FAULTS = {
    "not_utf8": b"x,K\xf6ln\n",
    "byte_order_mark": b"\xef\xbb\xbfx,y\n",
    "nul": b"x,a\x00b\n",
    "column_count": b"x,y,z\n",
    "bad_quotes": b'x,"y" z\n',
    "empty_line": b"\n",
    "line_too_long": b"x," + b"y" * LIMIT + b"\n",
    "bad_line_end": b"x,y\rz,w\n",
    "hidden_character": "x,a\u200bb\n".encode(),
}


@pytest.mark.parametrize(("reason", "line"), CSV_FAULTS.items(), ids=list(CSV_FAULTS))
def test_a_csv_fault_costs_its_own_line_only(tmp_path: Path, reason: str, line: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b"1,one\n" + line + b"2,two\n")
    before, bad, after = read_csv(path, LIMIT)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.line, bad.byte) == (reason, 3, len(HEADER) + 6)
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert (after.line, after.byte, after.values) == (4, bad.end, {"id": "2", "text": "two"})


def test_an_escape_hides_no_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id":"x","text":"a\\u202eb"}\n{"id":"y","text":"\\u00e9"}')
    bad, good = read_jsonl(path, LIMIT)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.detail) == ("hidden_character", "U+202E in column 'text'")
    assert isinstance(good, Row)


def test_hidden_characters_may_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(JSONL_FAULTS["hidden_character"])
    with path.open("rb") as file:
        (row,) = readers.read_jsonl(file, path.name, Rules(LIMIT, False, None))
    assert isinstance(row, Row)


def test_a_line_of_a_gigabyte_is_passed_over(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(2**30)  # a sparse file: zeros that need no disk
        file.seek(2**30)
        file.write(b"\n" + LAST)
    tracemalloc.start()
    bad, good = read_jsonl(path, 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.end) == ("line_too_long", 2**30 + 1)
    assert isinstance(good, Row)
    assert peak < 8_000_000


def test_tabs_separate_like_commas(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b'id\ttext\n1\ta, b\n2\t"c\td"\n3\te\tf\n')
    first, second, bad = read_csv(path, LIMIT, "\t")
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert isinstance(bad, BadRow)
    assert (first.values["text"], second.values["text"]) == ("a, b", "c\td")
    assert bad.reason == "column_count"


def test_csv_with_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\r\n1,"a ""b"", c\r\nd"\r\n2,two')
    first, second = read_csv(path, LIMIT)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.values == {"id": "1", "text": 'a "b", c\r\nd'}
    assert (second.line, second.byte) == (4, 28)


@pytest.mark.parametrize("limit", [30, 100_000])
def test_a_quote_that_never_closes_does_not_swallow_the_file(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b'x,"open\n' + b"".join(b"%d,row\n" % n for n in range(2000)))
    bad, *good = read_csv(path, limit)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.line, bad.byte) == ("unclosed_quote", 2, len(HEADER))
    assert len(good) == 2000
    assert all(isinstance(row, Row) for row in good)


def test_a_stray_quote_costs_no_row_but_those_that_have_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b'1,6" pipe\n2,two\n3,8" pipe\n4,four\n')
    rows = list(read_csv(path, LIMIT))
    assert [(row.line, type(row).__name__) for row in rows] == [
        (2, "BadRow"), (3, "Row"), (4, "BadRow"), (5, "Row"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "rows.csv is empty; the first line of such a file names its columns"),
        (b"\xef\xbb\xbfid,text\n", "the header cannot be read: byte_order_mark: begins with EF BB"),
        (b"id,id\n", "column 'id' comes twice; give each its own name"),
        (b"id,\n", "a column has no name; name every column"),
        (b"\n", "a column has no name; name every column"),
    ],
)
def test_a_header_that_cannot_be_used(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(StageError, match=text):
        list(read_csv(path, LIMIT))


ROWS = b"".join(
    json.dumps({"id": str(n), "text": 'say "hi", ü'}, ensure_ascii=False).encode() + b"\n"
    for n in range(6)
)
CSV_ROWS = "".join(f'{n},"say ""hi"", ü\nagain"\n' for n in range(6)).encode()
EDITS = st.lists(
    st.tuples(st.integers(0, len(ROWS)), st.integers(0, 3), st.binary(max_size=4)), max_size=6
)


def mutate(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, added in edits:
        content = content[:place] + added + content[place + removed :]
    return content


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS, limit=st.integers(5, 100))
def test_whatever_the_bytes_are_every_line_is_accounted_for(
    tmp_path: Path, edits: list[tuple[int, int, bytes]], limit: int
) -> None:
    path = tmp_path / "rows.jsonl"
    content = mutate(ROWS, edits)
    assume(content[:2] not in (b"\xff\xfe", b"\xfe\xff") and b"\0" not in content[:16])  # UTF-16
    path.write_bytes(content)
    rows = list(read_jsonl(path, limit))
    read = content[: rows[-1].end] if rows else b""
    assert len(rows) == read.count(b"\n") + (not read.endswith(b"\n") and read != b"")
    covers_the_file(rows, 0, content)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS, limit=st.integers(10, 100))
def test_whatever_the_bytes_are_csv_rows_cover_the_file(
    tmp_path: Path, edits: list[tuple[int, int, bytes]], limit: int
) -> None:
    path = tmp_path / "rows.csv"
    content = HEADER + mutate(CSV_ROWS, edits)
    path.write_bytes(content)
    covers_the_file(list(read_csv(path, limit)), len(HEADER), content)


def covers_the_file(rows: list[Row | BadRow], start: int, content: bytes) -> None:
    """Row follows row without a gap, from the first byte to the last that is not blank."""
    for row in rows:
        assert row.byte == start
        assert row.end is not None
        assert row.end > row.byte
        start = row.end
    assert not content[start:].strip()


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + LAST + b"\n  \r\n\n")
    assert [getattr(row, "reason", "") for row in read_jsonl(path, LIMIT)] == ["", "empty_line", ""]
    path.write_bytes(b"a,b\n1,2\n\n3,4\n\r\n\n")
    assert [getattr(row, "reason", "") for row in read_csv(path, LIMIT)] == ["", "empty_line", ""]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_told_once(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes((GOOD + LAST).decode().encode(encoding))
    for read in (read_jsonl, read_csv):
        with pytest.raises(StageError, match=r"^rows is UTF-16; save it as UTF-8$"):
            list(read(path, LIMIT))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("a;b", "looks like ';'; save it with commas"),
        ("a\tb", "a tab; write read_as: {container: tsv}"),
    ],
)
def test_another_delimiter(tmp_path: Path, header: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n1;2\n")
    with pytest.raises(
        StageError, match=r"^rows.csv:1: has one column, and its delimiter"
    ) as caught:
        list(read_csv(path, LIMIT))
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize("escape", ["b", "f", "u001b"])
def test_an_escape_spells_no_control(tmp_path: Path, escape: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a":"x\\{escape}"}}\n')
    (bad,) = read_jsonl(path, LIMIT)
    assert isinstance(bad, BadRow)
    assert bad.reason == "hidden_character"
