"""Strict readers of Parquet and Arrow: typed rows, in bounded memory.

A row has no bytes of its own in a file of columns: `line` is its number, from 1, and `byte` is None.
A file whose own structure is broken is damaged as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from tasks.dataset import hidden_characters, strict_json
from tasks.dataset.faults import RowError
from tasks.dataset.readers import BadRow, Row, Rules, check_header, too_long
from tasks.lineage.stage import StageError

BATCH_ROWS = 256
_ARROW_FILE = b"ARROW1"


def read_parquet(file: IO[bytes], name: str, rules: Rules) -> Iterator[Row | BadRow]:
    """The rows of a Parquet file, which is read row group by row group.

    Raises:
        StageError: when the file is damaged.
    """
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        table = parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=1 << 16, page_checksum_verification=True
        )
        check_header(name, table.schema_arrow.names, rules)
        yield from table.iter_batches(batch_size=BATCH_ROWS)

    return _rows(batches(), name, rules)


def read_arrow(file: IO[bytes], name: str, rules: Rules) -> Iterator[Row | BadRow]:
    """The rows of an Arrow IPC file or stream; `datasets` writes the latter.

    Raises:
        StageError: when the file is damaged.
    """
    from pyarrow import ipc

    def batches() -> Iterator[Any]:
        begin = file.read(len(_ARROW_FILE))
        file.seek(0)
        if begin == _ARROW_FILE:
            reader = ipc.open_file(file)
            check_header(name, reader.schema.names, rules)
            parts = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            parts = ipc.open_stream(file)
            check_header(name, parts.schema.names, rules)
        for part in parts:
            for start in range(0, part.num_rows, BATCH_ROWS):
                yield part.slice(start, BATCH_ROWS)

    return _rows(batches(), name, rules)


def _rows(batches: Iterator[Any], name: str, rules: Rules) -> Iterator[Row | BadRow]:
    line = 0
    while True:
        try:
            batch = next(batches, None)
            found = [] if batch is None else _values(batch)
        except StageError:
            raise
        except Exception as error:  # pyarrow has no common class for what damage leads to
            raise StageError(
                f"{name}: damaged behind row {line} ({_first_line(error)}); make the file again"
            ) from None
        if batch is None:
            return
        for values in found:
            line += 1
            if isinstance(values, RowError):
                yield BadRow(line, None, None, b"", values.reason, values.detail)
                continue
            try:
                _check(values, rules)
                yield Row(line, None, None, b"", values)
            except RowError as fault:
                yield BadRow(line, None, None, shown(values), fault.reason, fault.detail)


def _values(batch: Any) -> list[dict[str, Any] | RowError]:
    """The rows of a batch as Python's values; a fault for one whose strings are not UTF-8."""
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        if batch.num_rows == 1:
            return [RowError("not_utf8", "a string of the row is not UTF-8")]
        return [row for at in range(batch.num_rows) for row in _values(batch.slice(at, 1))]
    rows: list[dict[str, Any] | RowError] = _to_microseconds(batch).to_pylist()
    return rows


def _to_microseconds(batch: Any) -> Any:
    """Python's times have no nanoseconds; what is finer is cut."""
    import pyarrow
    from pyarrow import types

    for at, field in enumerate(batch.schema):
        if types.is_timestamp(field.type) and field.type.unit == "ns":
            whole = pyarrow.timestamp("us", field.type.tz)
            column = batch.column(at).cast(whole, safe=False)
            batch = batch.set_column(at, field.name, column)
    return batch


def _check(values: dict[str, Any], rules: Rules) -> None:
    """What the text readers ask of a row.

    Raises:
        RowError: `line_too_long`, `nul` or `hidden_character`.
    """
    length, plain = 0, True
    for text in strict_json.strings(values):
        length += len(text)
        plain = plain and not hidden_characters.suspicious(text)
        if "\0" in text:
            raise RowError("nul", "a text holds the character U+0000")
    if length > rules.max_line_bytes:
        raise RowError("line_too_long", too_long(length, rules.max_line_bytes))
    if rules.reject_hidden and not plain:
        hidden_characters.check(values)


def shown(values: Mapping[str, Any]) -> bytes:
    """A row of a table as it may be shown; it has no text of its own."""
    return json.dumps(
        values, ensure_ascii=False, default=lambda value: type(value).__name__
    ).encode("utf-8", "backslashreplace")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
