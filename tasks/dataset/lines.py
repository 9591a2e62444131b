"""The records of a file by number, read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.dataset import records

BATCH = 2_000
"""Lines that are read at once, at most."""

BATCH_BYTES = 8_000_000
"""Of lines that are read at once; a longer one is a batch of its own."""

_SCAN = 1 << 20


class Lines:
    """The lines of a file, by number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        found, end = [np.zeros(1, np.int64)], 0
        while chunk := self._file.read(_SCAN):
            found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + end + 1)
            end += len(chunk)
        self._starts = np.concatenate(found)
        if self._starts[-1] != end:
            self._starts = np.append(self._starts, end)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self._starts[-1])

    def close(self) -> None:
        self._file.close()

    def batches(self) -> Iterator[tuple[int, int]]:
        """The numbers at which batches of lines begin and end."""
        begin = 0
        while begin < len(self):
            limit = self._starts[begin] + BATCH_BYTES
            fit = int(np.searchsorted(self._starts, limit, "right")) - 1
            end = max(begin + 1, min(begin + BATCH, fit))
            yield begin, end
            begin = end

    def read(self, begin: int, end: int) -> list[bytes]:
        """The lines from one number up to another, with their ends."""
        start = int(self._starts[begin])
        block = os.pread(self._file.fileno(), int(self._starts[end]) - start, start)
        bounds = (self._starts[begin : end + 1] - start).tolist()
        return [block[left:right] for left, right in pairwise(bounds)]

    def record(self, number: int) -> Any:
        """The record of a line."""
        return _record(self._path, number, self.read(number, number + 1)[0])

    def records(self, begin: int, end: int) -> list[Any]:
        """The records from one line up to another.

        Raises:
            StageError: at a line that is no JSON, for which the file was edited by hand.
        """
        lines = enumerate(self.read(begin, end), start=begin)
        return [_record(self._path, number, line) for number, line in lines]


def _record(path: Path, number: int, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise records.damaged(path, number + 1, error.msg) from None
