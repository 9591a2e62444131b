"""A JSON array is read element by element: what a fault costs, and that nothing goes missing."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.dataset import json_array
from tasks.dataset.json_array import read_json
from tasks.dataset.readers import BadRow, Row, Rules
from tasks.lineage.stage import StageError

LIMIT = 200
ROWS = [{"id": str(n), "text": 'say "hi" [ü] {', "in": [{"a": [1, 2]}, {}]} for n in range(5)]
LAYOUTS: dict[str, dict[str, Any]] = {
    "one line": {"separators": (",", ":")},
    "indented": {"indent": 2},
    "flat": {"indent": 0},
}


def read(content: bytes, limit: int = LIMIT) -> list[Row | BadRow]:
    return list(read_json(io.BytesIO(content), "a.json", Rules(limit, True, None)))


def told(rows: list[Row | BadRow]) -> list[str]:
    """The id of a good row, the reason of a bad one."""
    return [row.values["id"] if isinstance(row, Row) else row.reason for row in rows]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_every_layout_is_read(
    layout: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "CHUNK_BYTES", chunk)
    content = json.dumps(ROWS, ensure_ascii=False, **layout).encode()
    rows = read(b" \n" + content + b"\n")
    assert [row.values for row in rows if isinstance(row, Row)] == ROWS
    for row in rows:
        assert row.byte is not None
        assert row.raw == (b" \n" + content)[row.byte : row.end]
        assert row.line == (b" \n" + content)[: row.byte].count(b"\n") + 1


GOOD = b'{"id":"1"}'
LAST = b'{"id":"2"}'


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (b"null", "not_an_object"),
        (b"[1, 2]", "not_an_object"),
        (b'"text, [ {"', "not_an_object"),
        (b"", "invalid_json"),
        (b"garbage", "invalid_json"),
        (b'{"id":NaN}', "not_finite"),
        (b'{"id":"x","id":"y"}', "duplicate_key"),
        (b'{"id":"x",}', "invalid_json"),
        (b'{"id":"K\xf6ln"}', "not_utf8"),
        (b'{"id":"a\\ud800"}', "lone_surrogate"),
        (b'{"id":"' + b"x" * LIMIT + b'"}', "line_too_long"),
        (b"1" * LIMIT * 2, "line_too_long"),
        ('{"id":"a\u202e"}'.encode(), "hidden_character"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_an_element_costs_itself_alone(
    element: bytes, reason: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "CHUNK_BYTES", chunk)
    for layout in (b"[%s,%s,%s]", b"[\n  %s,\n  %s,\n  %s\n]"):
        rows = read(layout % (GOOD, element, LAST))
        assert told(rows) == ["1", reason, "2"]


@pytest.mark.parametrize(
    "element",
    [
        b'{"id":"never closed}',
        b'{"id":"a\nb"}',
        b'{"id":["x"}',
        b'{"id":"x"',
        b'{"id":[[["x"}',
        b'{"id":"' + b"x" * LIMIT * 2,
        b"[" * 2000,
    ],
)
def test_wrong_brackets_cost_themselves_where_elements_have_lines(element: bytes) -> None:
    rows = read(b"[\n %s,\n %s,\n %s\n]" % (GOOD, element, LAST))
    assert told(rows)[0] == "1"
    assert told(rows)[-1] == "2"
    assert all(isinstance(row, BadRow) for row in rows[1:-1])
    assert rows[1].line == 3


def test_a_bracket_too_many_is_a_reject_of_its_own() -> None:
    rows = read(b"[\n %s},\n %s\n]" % (GOOD, LAST))
    assert told(rows) == ["1", "invalid_json", "2"]


def test_wrong_brackets_cost_the_rest_of_an_array_in_one_line() -> None:
    _good, bad = read(b"[%s,%s,%s,%s]" % (GOOD, b'{"id":["x"}', LAST, LAST))
    assert isinstance(bad, BadRow)
    assert bad.reason == "invalid_json"
    assert bad.detail == (
        "} closes what is not open; where the next element begins is not known, so the rest of the "
        "file is not read"
    )
    assert (bad.byte, bad.end) == (12, 46)


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (b"[", ["truncated_json"]),
        (b"[]", []),
        (b"", []),
        (b"[%s" % GOOD, ["1", "truncated_json"]),
        (b"[%s," % GOOD, ["1", "truncated_json"]),
        (b'[%s,{"id":"' % GOOD, ["1", "truncated_json"]),
        (b"[%s,]" % GOOD, ["1", "invalid_json"]),
        (b"[%s %s]" % (GOOD, LAST), ["1", "invalid_json"]),
        (b"[%s] %s\n%s" % (GOOD, LAST, LAST), ["1", "invalid_json"]),
    ],
)
def test_how_an_array_may_end(content: bytes, reasons: list[str]) -> None:
    assert told(read(content)) == reasons


@pytest.mark.parametrize("content", [b'{"data":[]}', b"\xef\xbb\xbf[]", b"null", b"\xff"])
def test_what_is_no_array(content: bytes) -> None:
    with pytest.raises(
        StageError, match=r"a.json:1: begins with byte .., not with \[; write an ar"
    ):
        read(content)


def test_a_giant_element_is_never_held_in_memory() -> None:
    import tracemalloc

    class Giant(io.RawIOBase):
        """An element of 50 MB between two small ones."""

        def __init__(self) -> None:
            self.parts = iter(
                [b"[", GOOD, b',{"id":"', *[b"x" * 50_000] * 1000, b'"},', LAST, b"]"]
            )

        def read(self, size: int = -1) -> bytes:
            return next(self.parts, b"")

    tracemalloc.start()
    rows = list(read_json(Giant(), "a.json", Rules(LIMIT, True, None)))  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told(rows) == ["1", "line_too_long", "2"]
    assert peak < 2_000_000


EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=4)), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(edits=EDITS, limit=st.integers(5, 100), indent=st.sampled_from([None, 0, 1]))
def test_whatever_the_bytes_are_elements_come_in_order(
    edits: list[tuple[int, int, bytes]], limit: int, indent: int | None
) -> None:
    content = json.dumps(ROWS, indent=indent).encode()
    for place, removed, added in edits:
        content = content[:place] + added + content[place + removed :]
    at = 0
    try:
        for row in read(content, limit):
            assert row.byte is not None
            assert row.end is not None
            assert at <= row.byte <= row.end <= len(content)
            assert row.line == content[: row.byte].count(b"\n") + 1
            at = row.end
    except StageError:
        assert not content.lstrip(b" \t\r\n").startswith(b"[")


@pytest.mark.parametrize("rows", [20_000, 40_000])
def test_elements_without_an_end_do_not_cost_the_square(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "RESCANS", 4)
    monkeypatch.setattr(json_array, "CHUNK_BYTES", 500)
    looked = 0
    scan = json_array._Element._scan

    def counted(element: json_array._Element, at: int) -> bool:
        nonlocal looked
        before = at - element.window.at
        ended = scan(element, at)
        looked += element.seen - before
        return ended

    monkeypatch.setattr(json_array._Element, "_scan", counted)
    content = b"[\n" + GOOD + b",\n" + b'{"id":[\n' * rows + GOOD + b"\n]"
    found = read(content)
    assert looked < 20 * LIMIT * 4
    assert told(found)[0] == "1"
    assert set(told(found)[1:]) == {"line_too_long"}
    assert found[-1].end == len(content)
    assert isinstance(found[-1], BadRow)
    assert found[-1].detail.endswith(
        "; too many elements above have no end either, so the rest of the file is not read"
    )
