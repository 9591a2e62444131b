"""Strict readers of text: JSONL, CSV and TSV, row by row, with line and byte, in bounded memory.

A reader yields a `Row` or a `BadRow` for every row of the stream and never raises for a row: what
a lenient reader would guess at (a byte order mark, Latin-1, NaN, a repeated key) is a `BadRow`.
"""

from __future__ import annotations

import csv
import datetime
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from tasks.dataset import hidden_characters, strict_json
from tasks.dataset.faults import RowError
from tasks.lineage.stage import StageError

SKIP_BYTES = 1 << 16
BLANK_LINES = 100
"""At the end of a file, that are passed over."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a row may be.  `columns`: exactly these; None accepts any."""

    max_line_bytes: int
    reject_hidden: bool
    columns: list[str] | None


@dataclass(slots=True)
class Row:
    """A row that is well formed. `line` counts from 1, `byte` is the offset of its first byte in the
    decompressed file, `end` of the byte behind it, None where a container has rows and no lines;
    `raw` is the row as it stands in the file."""

    line: int
    byte: int | None
    end: int | None
    raw: bytes
    values: Mapping[str, Any]


@dataclass(slots=True)
class BadRow:
    """A row that is not. Of an overlong one, `raw` holds the start."""

    line: int
    byte: int | None
    end: int | None
    raw: bytes
    reason: str
    detail: str


def read_jsonl(file: IO[bytes], name: str, rules: Rules) -> Iterator[Row | BadRow]:
    """The rows of a stream with one JSON object a line.

    Raises:
        StageError: when it is UTF-16.
    """
    return _without_blank_end(_lines(file, name, rules))


def _without_blank_end(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Blank lines at the end of a file are an editor's habit; elsewhere they are faults."""
    held: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow) and row.reason == "empty_line" and len(held) < BLANK_LINES:
            held.append(row)
            continue
        if held:
            yield from held
            held.clear()
        yield row


def check_encoding(name: str, start: bytes) -> None:
    """Tell once of a stream that begins as UTF-16 does: by its mark, or by a NUL in every other byte.

    Raises:
        StageError: when it does.
    """
    start = start[:16]
    low, high = start[::2], start[1::2]
    spread = len(start) >= 4 and ((all(low) and not any(high)) or (all(high) and not any(low)))
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or spread:
        raise StageError(f"{name} is UTF-16; save it as UTF-8")


def _lines(file: IO[bytes], name: str, rules: Rules) -> Iterator[Row | BadRow]:
    line = byte = 0
    most = rules.max_line_bytes
    while raw := file.readline(most + 1):
        line += 1
        if line == 1:
            check_encoding(name, raw)
        content = raw.removesuffix(b"\n")
        if len(content) > most:
            end = byte + len(raw) + _skip_line(file)
            yield BadRow(line, byte, end, content, "line_too_long", too_long(end - byte, most))
        else:
            end = byte + len(raw)
            try:
                yield Row(line, byte, end, content, json_object(content, rules))
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


def json_object(raw: bytes, rules: Rules) -> dict[str, Any]:
    """The object that one JSON text is.

    Raises:
        RowError: whatever is wrong with it.
    """
    text = _text(raw)
    if not text or text.isspace():
        raise RowError("empty_line", "the line is blank")
    value = strict_json.parse(text)
    if not isinstance(value, dict):
        raise RowError("not_an_object", f"the line is {json_type(value)}, not an object")
    if rules.reject_hidden and (_escapes(text) or hidden_characters.suspicious(text)):
        hidden_characters.check(value)
    return value


def _escapes(text: str) -> bool:
    """Whether a JSON text may spell a control or a hidden character with an escape."""
    return "\\" in text and ("\\u" in text or "\\b" in text or "\\f" in text)


def json_type(value: object) -> str:
    """What JSON calls a value, with its article; and the values that only other containers have."""
    if isinstance(value, datetime.date | datetime.time):
        return "a timestamp"
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        bytes: "bytes",
    }
    return "null" if value is None else names.get(type(value), "a number")


def check_header(name: str, header: list[str], rules: Rules) -> None:
    """A file whose rows all have the same columns is told of wrong ones once.

    Raises:
        StageError: when the columns are not unique, not named, or not what `columns` says.
    """
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise StageError(f"{name}:1: column {twice[0]!r} comes twice; give each its own name")
    if not header or not all(column.strip() for column in header):
        raise StageError(f"{name}:1: a column has no name; name every column")
    if rules.columns is not None and set(header) != set(rules.columns):
        raise StageError(
            f"{name}:1: the columns are {', '.join(header)}, but params.yaml lists "
            f"{', '.join(rules.columns)}; correct `columns` of this source, or the file"
        )


def read_separated(
    file: IO[bytes], name: str, delimiter: str, rules: Rules
) -> Iterator[Row | BadRow]:
    """The rows of a CSV or TSV stream (RFC 4180, UTF-8) whose first line names the columns.

    A record that does not parse rejects its first line alone, and reading goes on at the next, so
    that a stray quote cannot swallow the rows behind it.  The header is no row.

    Raises:
        StageError: when the header cannot be used, since then no row can.
    """
    return _without_blank_end(_separated(file, name, delimiter, rules))


def _separated(file: IO[bytes], name: str, delimiter: str, rules: Rules) -> Iterator[Row | BadRow]:
    records, cells_of = _Records(file, rules.max_line_bytes), _Cells(delimiter)
    header = _header(records.next(), name, cells_of)
    _check_delimiter(name, header, delimiter)
    check_header(name, header, rules)
    while (found := records.next()) is not None:
        if isinstance(found, BadRow):
            yield found
            continue
        raw = found.raw
        try:
            text = _text(raw)
            cells = cells_of.split(text)
            if not cells:
                raise RowError("empty_line", "the line is blank")
            if len(cells) != len(header):
                detail = f"{len(cells)} cells, but the header has {len(header)}"
                raise RowError("column_count", detail)
            values = dict(zip(header, cells, strict=True))
            if rules.reject_hidden and hidden_characters.suspicious(text):
                hidden_characters.check(values)
            yield Row(found.line, found.byte, found.end, raw, values)
        except RowError as fault:
            if fault.reason == "bad_quotes":
                yield records.retreat(found, fault)
            else:
                yield BadRow(found.line, found.byte, found.end, raw, fault.reason, fault.detail)


def _header(found: _Record | BadRow | None, name: str, cells_of: _Cells) -> list[str]:
    if found is None:
        raise StageError(f"{name} is empty; the first line of such a file names its columns")
    check_encoding(name, found.raw)
    try:
        if isinstance(found, BadRow):
            raise RowError(found.reason, found.detail)
        return cells_of.split(_text(found.raw))
    except RowError as fault:
        raise StageError(f"{name}:1: the header cannot be read: {fault}; mend it") from None


def _check_delimiter(name: str, header: list[str], delimiter: str) -> None:
    """A file with another delimiter has one column, whose name holds it."""
    if len(header) != 1 or delimiter != ",":
        return
    if "\t" in header[0]:
        raise StageError(
            f"{name}:1: has one column, and its delimiter looks like a tab; write "
            "read_as: {container: tsv}"
        )
    if ";" in header[0]:
        raise StageError(
            f"{name}:1: has one column, and its delimiter looks like ';'; save it with commas"
        )


class _Cells:
    """Splits a record into its cells."""

    def __init__(self, delimiter: str) -> None:
        field = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}]*)'
        self._record = re.compile(f"{field}(?:{delimiter}{field})*")
        self._delimiter = delimiter

    def split(self, text: str) -> list[str]:
        """The cells; none of a blank line.

        Raises:
            RowError: `bad_quotes` or `bad_line_end`.
        """
        if '"' not in text and "\r" not in text and "\n" not in text:
            return text.split(self._delimiter) if text else []
        if '"' in text and not self._record.fullmatch(text):
            detail = (
                "a quote stands inside a cell; put the cell in quotes and write the quote twice"
            )
            raise RowError("bad_quotes", detail)
        limit = csv.field_size_limit(len(text) + 1)  # 128 KiB by itself; a row is bounded already
        try:
            lines = io.StringIO(text, newline="")
            rows = list(csv.reader(lines, strict=True, delimiter=self._delimiter))
        finally:
            csv.field_size_limit(limit)  # it holds for the whole process
        if len(rows) > 1:  # a lone carriage return ends a record for the csv module
            raise RowError("bad_line_end", "a carriage return stands alone; end lines with \\n")
        return rows[0] if rows else []


@dataclass(slots=True)
class _Record:
    line: int
    byte: int
    end: int
    parts: list[bytes]  # its lines
    raw: bytes


class _Records:
    """Splits a stream into CSV records: lines are joined while a quote is open.

    In RFC 4180 a record is whole when its quotes are even in number, whatever they mean.
    """

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._max = max_bytes
        self._line = 1
        self._byte = 0
        self._back = b""  # read, and to be read again from _at on: a stream cannot be wound back
        self._at = 0

    def next(self) -> _Record | BadRow | None:
        """The record at the current line; the current line is then the one behind it."""
        line, byte = self._line, self._byte
        first = self._readline(self._max + 1)
        if not first:
            return None
        if len(first.removesuffix(b"\n")) > self._max:
            end = byte + len(first) + self._skip_line()
            self._line, self._byte = line + 1, end
            return BadRow(line, byte, end, first, "line_too_long", too_long(end - byte, self._max))
        parts, length, quotes = [first], len(first), first.count(b'"')
        while quotes % 2:
            part = self._readline(max(0, self._max + 1 - length))
            parts.append(part)
            length += len(part)
            quotes += part.count(b'"')
            if not part or length - part.endswith(b"\n") > self._max:
                detail = f"a quote opens and does not close within {self._max} bytes or the file"
                return self._only_first(line, byte, parts, "unclosed_quote", detail)
        self._line, self._byte = line + len(parts), byte + length
        raw = first if len(parts) == 1 else b"".join(parts)
        return _Record(line, byte, byte + length, parts, _no_end(raw))

    def retreat(self, record: _Record, fault: RowError) -> BadRow:
        """Reject the record's first line; the current line is then the second."""
        return self._only_first(record.line, record.byte, record.parts, fault.reason, fault.detail)

    def _only_first(
        self, line: int, byte: int, parts: list[bytes], reason: str, detail: str
    ) -> BadRow:
        first = parts[0]
        self._back, self._at = b"".join([*parts[1:], self._back[self._at :]]), 0
        self._line, self._byte = line + 1, byte + len(first)
        return BadRow(line, byte, self._byte, _no_end(first), reason, detail)

    def _readline(self, limit: int) -> bytes:
        if self._at == len(self._back):
            return self._file.readline(limit)
        start, most = self._at, min(len(self._back), self._at + limit)
        self._at = self._back.find(b"\n", start, most) + 1 or most
        line = self._back[start : self._at]
        if self._at == len(self._back) and not line.endswith(b"\n"):
            line += self._file.readline(limit - len(line))
        return line

    def _skip_line(self) -> int:
        skipped = 0
        while self._at < len(self._back):
            chunk = self._readline(SKIP_BYTES)
            skipped += len(chunk)
            if chunk.endswith(b"\n"):
                return skipped
        return skipped + _skip_line(self._file)


def too_long(length: int, limit: int) -> str:
    return f"{length} bytes, more than {limit}"


def _no_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r")
