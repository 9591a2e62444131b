"""Sources at a URL: brought once, checked, kept in the state folder, and read as local files.

A URL is pinned by the sha256 of its content; files of a Hugging Face dataset by the commit, from
which git's own hashes of every file follow.  So what is kept is found again by its pin alone, and a
second run needs no network.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.dataset import places
from tasks.lineage.console import Advance, log, progress
from tasks.lineage.stage import FAULT, StageError

CHUNK_BYTES = 1 << 20
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""The extra of pyproject.toml that brings the client of a scheme."""


class DownloadError(StageError):
    """A source cannot be brought: the machine's fault or the network's, not the input's."""

    exit_code = FAULT


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here now; `name` is what records and rejects call it."""

    name: str
    path: Path


def unavailable(url: str) -> str | None:
    """What to say of a URL whose scheme cannot be read on this machine."""
    import fsspec

    scheme = url.partition("://")[0].lower()
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        known = "https, s3, gs, az, hf, file"
        return f"is {places.label(url)!r}, and {scheme} is no scheme that fsspec knows; use {known}"
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f'`pip install -e ".[{extra}]"`' if extra else str(error)
        return (
            f"is {places.label(url)!r}, and the client for {scheme}:// is not installed; {remedy}"
        )
    return None


def fetch(url: str, folder: Path) -> list[Fetched]:
    """The files that a pinned URL names, brought into `folder` where they are not there yet.

    Raises:
        StageError: when the content is not the pinned one, or cannot be brought.
    """
    if fault := unavailable(url):
        raise DownloadError(f"params.yaml: a source {fault}")
    folder.mkdir(parents=True, exist_ok=True)
    if dataset := places.hub(url):
        return _from_hub(dataset, folder)
    address, _, pin = url.partition("#sha256=")
    pin = pin.lower()
    path = folder / pin
    if not path.is_file() or _sha256(path) != pin:
        _bring(address, path, functools.partial(_check_sha256, address, pin))
    return [Fetched(places.label(url), path)]


def _check_sha256(address: str, pin: str, path: Path) -> None:
    if (found := _sha256(path)) != pin:
        raise StageError(
            f"{places.label(address)}: its sha256 is {found}, but params.yaml pins {pin}; it has "
            "changed or was cut: look at it, then pin the new one"
        )


def _from_hub(dataset: places.Hub, folder: Path) -> list[Fetched]:
    at = f"hf://datasets/{dataset.repo}@{dataset.commit}"
    fetched = []
    for entry in _listing(dataset, at, folder):
        name = f"{at}/{entry['path']}"
        path = folder / hashlib.sha256(name.encode()).hexdigest()
        if not path.is_file() or _hub_fault(path, entry):
            _bring(name, path, functools.partial(_check_hub, name, entry))
        fetched.append(Fetched(name, path))
    return fetched


def _listing(dataset: places.Hub, at: str, folder: Path) -> list[dict[str, Any]]:
    """The files that the path matches, sorted; a commit's never change, so they are kept too."""
    kept = folder / f"{hashlib.sha256(f'{at}/{dataset.path}'.encode()).hexdigest()}.json"
    if kept.is_file():
        found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = HfApi().list_repo_tree(
            dataset.repo, recursive=True, revision=dataset.commit, repo_type="dataset"
        )
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:
        raise DownloadError(f"{at}: cannot be listed ({_line(error)}); {_AGAIN}") from error
    found = sorted(
        (
            {"path": f.path, "blob": f.blob_id, "sha256": f.lfs.sha256 if f.lfs else None}
            for f in files
            if f.path == dataset.path or _matches(f.path, dataset.path)
        ),
        key=lambda entry: str(entry["path"]),
    )
    if not found:
        there = ", ".join(sorted(f.path for f in files)[:8])
        raise StageError(f"{at} has no file {dataset.path!r}; it has {there}")
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(kept)
    return found


def _matches(path: str, pattern: str) -> bool:
    """As below data/raw: a star stays within a folder, two go through all."""
    parts, wanted = path.split("/"), pattern.split("/")
    return _match_parts(parts, wanted)


def _match_parts(parts: list[str], wanted: list[str]) -> bool:
    if not wanted or not parts:
        return not wanted and not parts
    if wanted[0] == "**":
        return _match_parts(parts, wanted[1:]) or _match_parts(parts[1:], wanted)
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _match_parts(parts[1:], wanted[1:])


def _hub_fault(path: Path, entry: dict[str, Any]) -> str | None:
    """git's hash of a small file, the sha256 of a large one."""
    if entry["sha256"]:
        found, pinned, kind = _sha256(path), entry["sha256"], "sha256"
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        found, pinned, kind = _digest(path, digest), entry["blob"], "git hash"
    return None if found == pinned else f"its {kind} is {found}, but the commit says {pinned}"


def _check_hub(name: str, entry: dict[str, Any], path: Path) -> None:
    if fault := _hub_fault(path, entry):
        raise StageError(f"{name}: {fault}; what came is not what was committed, try again")


_AGAIN = "see that the address is right and can be reached from here, then run again"


def _bring(address: str, path: Path, check: Callable[[Path], None]) -> None:
    """Write beside, check, rename."""
    import fsspec

    name = places.label(address)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        filesystem, remote = fsspec.url_to_fs(address)
        with (
            filesystem.open(remote, "rb") as source,
            partial.open("wb") as target,
            progress(f"bringing {name}, bytes", source.size or 0) as advance,
        ):
            _copy(source, target, advance)
        check(partial)
        partial.replace(path)
        log.info("brought %s: %d bytes", name, path.stat().st_size)
    except StageError:
        raise
    except Exception as error:  # every client has classes of its own
        why = _line(error).replace(address, name)  # a client may quote it, key and all
        raise DownloadError(f"{name}: cannot be brought ({why}); {_AGAIN}") from None
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: Any, target: Any, advance: Advance) -> None:
    done = 0
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        done += len(chunk)
        advance(done, "")


def _sha256(path: Path) -> str:
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    found: str = digest.hexdigest()
    return found


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
