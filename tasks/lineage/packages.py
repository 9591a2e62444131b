"""The installed packages against a lock file."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def other_than(lock: Path) -> list[str]:
    """The packages whose installed version is not the one that a lock file pins, a line each."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if re.match(r"[\w.-]+ *==", line)]
    return [
        f"{package.name} is {installed(package.name) or 'not installed'}, "
        f"{lock.name} says {str(package.specifier).removeprefix('==')}"
        for package in wanted
        if (package.marker is None or package.marker.evaluate())
        and not package.specifier.contains(installed(package.name) or "0", prereleases=True)
    ]


def installed(name: str) -> str | None:
    """The public version: builds for a CPU and for a GPU (2.13.0+cpu) share it."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
