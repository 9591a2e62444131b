"""Files and folders that are in place whole, or not at all.

What is written goes beside its place and is renamed, and is on the disk before that, so that neither
a kill nor a full disk nor a power cut leaves a part.  No system call replaces a folder that is not
empty, so it takes two renames; who finds a process to have died between them calls `recover`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path


def partial(path: Path) -> Path:
    """Where an output is written before it is put in place."""
    return path.with_name(f".{path.name}.partial")


def recover(path: Path) -> None:
    """Clean up what a process that died left: the place then holds what it held before, or what
    the process had finished."""
    old = _old(path)
    if os.path.lexists(old):
        if os.path.lexists(path):
            remove(old)
        else:
            old.rename(path)
    remove(partial(path))


def put(finished: Path, path: Path) -> None:
    """Put a finished output in place; what lay there goes.

    Raises:
        OSError: the place then holds the old or the new, whole.
    """
    _onto_disk(finished)
    if path.is_dir() or (finished.is_dir() and os.path.lexists(path)):
        old = _old(path)
        path.rename(old)
        try:
            finished.rename(path)
        except OSError:
            old.rename(path)
            raise
        remove(old)
    else:
        finished.replace(path)
    _sync(path.parent)


def is_disk_full(error: Exception) -> bool:
    """safetensors reports the system's errors as text."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        text in str(error) for text in ("os error 28", "No space left", "os error 122")
    )


def write_text(path: Path, text: str) -> None:
    """Write a whole file, as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = partial(path)
    try:
        beside.write_text(text, encoding="utf-8")
        put(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as a whole JSON file; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all below it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    """Where what a finished output replaces lies for a moment."""
    return path.with_name(f".{path.name}.old")


def _onto_disk(path: Path) -> None:
    """A rename can reach the disk before what was written into the renamed file."""
    if path.is_dir():
        for below in path.iterdir():
            if not below.is_symlink():
                _onto_disk(below)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
