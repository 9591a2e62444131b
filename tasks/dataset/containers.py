"""Opening a source's file: what it is compressed with, what it holds, and who reads that.

Everything is a stream: nothing is unpacked to a place with a name, and however much a small file
unpacks to, no more than a row and a buffer is held.  A container that needs random access is copied
to a temporary file without a name, of limited size, when it comes out of a stream.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasks.dataset import json_array, readers, tables
from tasks.dataset.places import Compression, Container, Form
from tasks.dataset.readers import BadRow, Row, Rules
from tasks.lineage.stage import STATE, StageError

BUFFER_BYTES = 1 << 18
COPY_BYTES = 8 << 30
"""Of a Parquet or Arrow file inside a compressed file or an archive: its columns are compressed
already, so one that unpacks to more is not one to unpack beside the work."""


@dataclass(frozen=True, slots=True)
class Content:
    """A stream of rows: a file, or a member of an archive.

    `name` is what records and rejects call it; `position` tells how many bytes of the file on disk
    are read.
    """

    name: str
    container: Container
    stream: IO[bytes]
    position: Callable[[], int]


@contextlib.contextmanager
def opened(path: Path, name: str, form: Form) -> Iterator[Content]:
    """A file that is no archive."""
    assert form.container is not None
    with path.open("rb", buffering=BUFFER_BYTES) as file:
        stream = decompressed(file, name, form.compression)
        yield Content(name, form.container, stream, file.tell)


def decompressed(file: IO[bytes], name: str, compression: Compression | None) -> IO[bytes]:
    """The stream that a compressed stream unpacks to."""
    if compression is None:
        return file
    if compression == "gz":
        return checked(gzip.GzipFile(fileobj=file), name)
    import pyarrow  # unlike zstandard's own reader, it tells a cut stream from one that ends

    return checked(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"), name)


def checked(stream: Any, name: str) -> IO[bytes]:
    """A stream of which a fault is told with file and place."""
    return io.BufferedReader(_Checked(stream, name), BUFFER_BYTES)


class _Checked(io.RawIOBase):
    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except StageError:
            raise
        except Exception as error:  # gzip, zipfile and tarfile have no common class for damage
            raise StageError(damaged(self._name, self._offset, error)) from None
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def damaged(name: str, offset: int, error: Exception) -> str:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"{name}: damaged behind byte {offset} of what it unpacks to ({why}); make the file again, or "
        "unpack it and keep the rows that are whole"
    )


def rows(content: Content, rules: Rules) -> Iterator[Row | BadRow]:
    """The rows of a stream, by its container."""
    stream, name = content.stream, content.name
    match content.container:
        case "jsonl":
            return readers.read_jsonl(stream, name, rules)
        case "json":
            return json_array.read_json(stream, name, rules)
        case "csv":
            return readers.read_separated(stream, name, ",", rules)
        case "tsv":
            return readers.read_separated(stream, name, "\t", rules)
        case "parquet":
            return _with_random_access(tables.read_parquet, stream, name, rules)
        case "arrow":
            return _with_random_access(tables.read_arrow, stream, name, rules)


def _with_random_access(
    read: Callable[[IO[bytes], str, Rules], Iterator[Row | BadRow]],
    stream: IO[bytes],
    name: str,
    rules: Rules,
) -> Iterator[Row | BadRow]:
    if stream.seekable():
        yield from read(stream, name, rules)
        return
    STATE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=STATE) as copy:  # /tmp may be memory
        while chunk := stream.read(BUFFER_BYTES):
            copy.write(chunk)
            if copy.tell() > COPY_BYTES:
                raise StageError(
                    f"{name}: unpacks to more than {COPY_BYTES} bytes, but can only be read as a "
                    "whole; unpack it yourself and name the file that comes out"
                )
        copy.seek(0)
        yield from read(copy, name, rules)
