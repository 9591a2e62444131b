"""Hashes of files and folders: DVC's md5, to find things by, and sha256, to trust them by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path


def file_hash(path: Path, algorithm: str) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of its POSIX path; what .dvcignore skips is skipped.

    Raises:
        ValueError: at a symbolic link, whose target a hash of the folder would not cover.
    """
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link; replace it with the file itself")
        if path.is_file() and not _ignored(path):
            yield path


def _ignored(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix == ".pyc" or path.name == "README.md"


def manifest(folder: Path, algorithm: str = "sha256") -> dict[str, str]:
    """Digest of every file below a folder, by POSIX path relative to it."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path, algorithm)
        for path in files_below(folder)
    }


def sha256(path: Path) -> str:
    """sha256 of a file, or of a folder's manifest."""
    if path.is_file():
        return file_hash(path, "sha256")
    return sha256_json(manifest(path))


def sha256_json(value: object) -> str:
    """sha256 of a value's canonical JSON (keys sorted, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dvc_md5(path: Path) -> str:
    """The hash that dvc.lock records: md5 of a file, or of a folder's listing with ".dir" behind."""
    if path.is_file():
        return file_hash(path, "md5")
    listing = [{"md5": digest, "relpath": name} for name, digest in manifest(path, "md5").items()]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"
