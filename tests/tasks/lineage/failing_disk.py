"""A disk that fails at its Nth operation, as in SQLite's tests: https://www.sqlite.org/testing.html"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OPERATIONS = ("open", "fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir")


class Killed(BaseException):
    """The process died here: no operation after this one happens, those of clean-up included."""


class FailingDisk:
    """Fails the operation `at`, counted from 1.  `error` is an errno, or None to die there."""

    def __init__(self, at: int, error: int | None) -> None:
        self.at = at
        self.error = error
        self.done = 0

    @property
    def triggered(self) -> bool:
        return self.done >= self.at

    def step(self) -> None:
        self.done += 1
        if self.error is None and self.done >= self.at:
            raise Killed
        if self.error is not None and self.done == self.at:
            raise OSError(self.error, os.strerror(self.error))


class _File:
    """A file open for writing, of which a failing write leaves a half."""

    def __init__(self, file: Any, disk: FailingDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, text: Any) -> int:
        try:
            self._disk.step()
        except (OSError, Killed):
            self._file.write(text[: len(text) // 2])
            self._file.flush()
            raise
        return int(self._file.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *about: object) -> None:
        self._file.close()


@contextmanager
def failing(at: int, error: int | None) -> Iterator[FailingDisk]:
    """Within, the disk fails; what is read succeeds."""
    disk = FailingDisk(at, error)
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, _counted(getattr(os, name), disk))
        patch.setattr(io, "open", _opened(io.open, disk))
        yield disk


def _counted(real: Any, disk: FailingDisk) -> Any:
    def operation(*arguments: Any, **options: Any) -> Any:
        disk.step()
        return real(*arguments, **options)

    return operation


def _opened(real: Any, disk: FailingDisk) -> Any:
    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return real(file, mode, *arguments, **options)
        disk.step()
        return _File(real(file, mode, *arguments, **options), disk)

    return opened


ERRORS = [errno.ENOSPC, errno.EIO, None]
"""A full disk, a broken one, a process that is killed."""
