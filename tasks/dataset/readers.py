"""Strict readers of JSONL and CSV: row by row, with line and byte, in bounded memory.

A reader yields a `Row` or a `BadRow` for every row of the file and never raises for a row: what
a lenient reader would guess at (a byte order mark, Latin-1, NaN, a repeated key) is a `BadRow`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasks.dataset import strict_json
from tasks.dataset.faults import RowError
from tasks.lineage.stage import StageError

SKIP_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """A row that is well formed. `line` counts from 1, `byte` is the offset of its first byte,
    `end` of the byte behind it; `raw` is the row as it stands in the file."""

    line: int
    byte: int
    end: int
    raw: bytes
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not. Of an overlong one, `raw` holds the start."""

    line: int
    byte: int
    end: int
    raw: bytes
    reason: str
    detail: str


def read_jsonl(path: Path, max_line_bytes: int) -> Iterator[Row | BadRow]:
    """The rows of a file with one JSON object a line."""
    with path.open("rb") as file:
        line = byte = 0
        while raw := file.readline(max_line_bytes + 1):
            line += 1
            content = raw.removesuffix(b"\n")
            if len(content) > max_line_bytes:
                end = byte + len(raw) + _skip_line(file)
                detail = _too_long(end - byte, max_line_bytes)
                yield BadRow(line, byte, end, content, "line_too_long", detail)
            else:
                end = byte + len(raw)
                try:
                    yield Row(line, byte, end, content, _object(content))
                except RowError as fault:
                    yield BadRow(line, byte, end, content, fault.reason, fault.detail)
            byte = end


def _skip_line(file: IO[bytes]) -> int:
    """Read on to the end of the line; how many bytes that was."""
    skipped = 0
    while chunk := file.readline(SKIP_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _text(raw: bytes) -> str:
    """The characters of a row.

    Raises:
        RowError: `byte_order_mark`, `nul` or `not_utf8`.
    """
    if raw.startswith(_BOM):
        raise RowError("byte_order_mark", "begins with EF BB BF; save the file without a mark")
    if b"\0" in raw:
        raise RowError("nul", f"byte 00 at offset {raw.index(0)} of the row")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {raw[error.start]:02X} at offset {error.start} of the row is not UTF-8"
        raise RowError("not_utf8", detail) from None


def _object(raw: bytes) -> dict[str, Any]:
    text = _text(raw)
    if not text.strip():
        raise RowError("empty_line", "the line is blank")
    value = strict_json.parse(text)
    if not isinstance(value, dict):
        raise RowError("not_an_object", f"the line is {json_type(value)}, not an object")
    return value


def json_type(value: object) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def read_csv(path: Path, max_line_bytes: int) -> Iterator[Row | BadRow]:
    """The rows of a CSV file (RFC 4180, commas, UTF-8) whose first line names the columns.

    A record that does not parse rejects its first line alone, and reading goes on at the next, so
    that a stray quote cannot swallow the rows behind it.  The header is no row.

    Raises:
        StageError: when the header cannot be used, since then no row can.
    """
    header = csv_header(path, max_line_bytes)
    with path.open("rb") as file:
        records = _Records(file, max_line_bytes)
        records.next()
        while (found := records.next()) is not None:
            if isinstance(found, BadRow):
                yield found
                continue
            raw = found.raw
            try:
                cells = _cells(raw)
                if not cells:
                    raise RowError("empty_line", "the line is blank")
                if len(cells) != len(header):
                    detail = f"{len(cells)} cells, but the header has {len(header)}"
                    raise RowError("column_count", detail)
                values = dict(zip(header, cells, strict=True))
                yield Row(found.line, found.byte, found.end, raw, values)
            except RowError as fault:
                if fault.reason == "bad_quotes":
                    yield records.retreat(found, fault)
                else:
                    yield BadRow(found.line, found.byte, found.end, raw, fault.reason, fault.detail)


def csv_header(path: Path, max_line_bytes: int) -> list[str]:
    """The column names of a CSV file.

    Raises:
        StageError: when there are none, or they are not UTF-8, not unique or not named.
    """
    with path.open("rb") as file:
        found = _Records(file, max_line_bytes).next()
    if found is None:
        raise StageError(f"{path.name} is empty; the first line of a CSV file names its columns")
    try:
        if isinstance(found, BadRow):
            raise RowError(found.reason, found.detail)
        names = _cells(found.raw)
    except RowError as fault:
        raise StageError(f"{path.name}:1: the header cannot be read: {fault}; mend it") from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StageError(f"{path.name}:1: column {twice[0]!r} comes twice; give each its own name")
    if not all(name.strip() for name in names) or not names:
        raise StageError(f"{path.name}:1: a column has no name; name every column")
    return names


_FIELD = r'(?:"[^"]*(?:""[^"]*)*"|[^",]*)'
_RECORD = re.compile(f"{_FIELD}(?:,{_FIELD})*")


def _cells(raw: bytes) -> list[str]:
    text = _text(raw)
    if '"' in text and not _RECORD.fullmatch(text):
        detail = "a quote stands inside a cell; put the cell in quotes and write the quote twice"
        raise RowError("bad_quotes", detail)
    limit = csv.field_size_limit(len(text) + 1)  # 128 KiB by itself; a row is bounded already
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    finally:
        csv.field_size_limit(limit)  # it holds for the whole process
    if len(rows) > 1:  # a lone carriage return ends a record for the csv module
        raise RowError("bad_line_end", "a carriage return stands alone; end lines with \\n")
    return rows[0] if rows else []


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    byte: int
    end: int
    first: bytes  # its first line
    raw: bytes


class _Records:
    """Splits a file into CSV records: lines are joined while a quote is open.

    In RFC 4180 a record is whole when its quotes are even in number, whatever they mean.
    """

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._max = max_bytes
        self._line = 1
        self._byte = 0

    def next(self) -> _Record | BadRow | None:
        """The record at the current line; the current line is then the one behind it."""
        line, byte = self._line, self._byte
        first = self._file.readline(self._max + 1)
        if not first:
            return None
        if len(first.removesuffix(b"\n")) > self._max:
            end = byte + len(first) + _skip_line(self._file)
            self._line, self._byte = line + 1, end
            return BadRow(line, byte, end, first, "line_too_long", _too_long(end - byte, self._max))
        parts, length, quotes = [first], len(first), first.count(b'"')
        while quotes % 2:
            part = self._file.readline(max(0, self._max + 1 - length))
            parts.append(part)
            length += len(part)
            quotes += part.count(b'"')
            if not part or length - part.endswith(b"\n") > self._max:
                detail = f"a quote opens and does not close within {self._max} bytes or the file"
                return self._only_first(line, byte, first, "unclosed_quote", detail)
        self._line, self._byte = line + len(parts), byte + length
        return _Record(line, byte, byte + length, first, _no_end(b"".join(parts)))

    def retreat(self, record: _Record, fault: RowError) -> BadRow:
        """Reject the record's first line; the current line is then the second."""
        return self._only_first(record.line, record.byte, record.first, fault.reason, fault.detail)

    def _only_first(self, line: int, byte: int, first: bytes, reason: str, detail: str) -> BadRow:
        self._line, self._byte = line + 1, byte + len(first)
        self._file.seek(self._byte)
        return BadRow(line, byte, self._byte, _no_end(first), reason, detail)


def _too_long(length: int, limit: int) -> str:
    return f"{length} bytes, more than {limit}"


def _no_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r")
