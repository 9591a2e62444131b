"""Where a source is: the one rule about the `file` of a source, for names and for what they find.

A source is a file below the raw data, a glob there, or a URL whose content is pinned.  The name alone
says how it is read: container, compression, archive.  Only names and folders are looked at here,
nothing is opened and nothing is fetched.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from urllib.parse import urlsplit

Container = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]
CONTAINERS: tuple[Container, ...] = get_args(Container)
Compression = Literal["gz", "zst"]
Archive = Literal["zip", "tar"]

_CONTAINERS: dict[str, Container] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".tgz": "gz", ".zst": "zst"}
_ARCHIVES: dict[str, Archive] = {".zip": "zip", ".tar": "tar", ".tgz": "tar"}
KNOWN = f"{' '.join(_CONTAINERS)}, each also with .gz or .zst behind it, .zip .tar .tar.gz .tgz .tar.zst"

_SHOWN = 8
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HASH = re.compile(r"sha256=[0-9a-fA-F]{64}")
_HUB = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<commit>[^/]*))?/(?P<path>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Form:
    """How a file is read, by its name; None where the name does not say."""

    container: Container | None
    compression: Compression | None
    archive: Archive | None

    @property
    def known(self) -> bool:
        return self.container is not None or self.archive is not None


def form(name: str, container: Container | None) -> Form:
    """The form of a file; `container` overrides what the name says of it."""
    path = PurePosixPath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    archive = _ARCHIVES.get(path.suffix)
    if compression and not archive:
        path = path.with_suffix("")
        archive = "tar" if path.suffix == ".tar" else None
    return Form(container or _CONTAINERS.get(path.suffix), compression, archive)


@dataclass(frozen=True, slots=True)
class Hub:
    """A file or a glob of files in a Hugging Face dataset at a commit."""

    repo: str
    commit: str
    path: str


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def hub(url: str) -> Hub | None:
    """The parts of a well-formed hf:// URL; None for another scheme."""
    found = _HUB.fullmatch(url)
    return Hub(found["repo"], found["commit"], found["path"]) if found else None


def label(name: str) -> str:
    """What records call a source: a URL without its hash and its query, which may hold a key."""
    return name.partition("#")[0].partition("?")[0] if is_url(name) else name


def is_glob(name: str) -> bool:
    return glob.has_magic(name)


def path_of(name: str) -> str:
    """The part of a name that its suffix stands in."""
    if not is_url(name):
        return name
    return found.path if (found := hub(name)) else PurePosixPath(label(name)).name


# --- names ----------------------------------------------------------------------------------------


def wrong_name(name: str, container: Container | None) -> str | None:
    """What is wrong with a source's name, as the end of a sentence that begins with its key."""
    if fault := _wrong_url(name) if is_url(name) else _wrong_path(name):
        return fault
    path = path_of(name)
    if form(path, container).known or (is_glob(path) and not PurePosixPath(path).suffix):
        return None
    return f"is {name!r}, whose container is not known; {_NAME_IT}"


_NAME_IT = f"write read_as: {{container: {'|'.join(CONTAINERS)}}}, or rename it to end in {KNOWN}"


Named = tuple[str | None, Container | None]
"""A source's file, None where it is not even a string, and the container that params.yaml gives."""


def wrong_names(sources: Sequence[Named]) -> Iterator[tuple[int, str]]:
    """The faults of the names of all sources, each with the source's index."""
    taken: set[str] = set()
    for index, (name, container) in enumerate(sources):
        if name is None:
            continue
        if fault := wrong_name(name, container):
            yield index, fault
        elif label(name) in taken:
            yield index, f"is {name!r}, which an entry above reads already; drop one"
        taken.add(label(name))


def _wrong_path(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return (
            f"is {name!r}, which leads out of the raw data; put the file there, or pin it: "
            f"file://{name}#sha256=<64 hex digits, which `sha256sum {name}` prints>"
        )
    return None


def _wrong_url(name: str) -> str | None:
    url, _, pin = name.partition("#")
    scheme = url.partition("://")[0].lower()
    if scheme == "hf":
        return _wrong_hub(name)
    if scheme in ("http", "https") and "@" in urlsplit(url).netloc:
        return f"is a URL of {urlsplit(url).hostname} that holds a password; take it out"
    if is_glob(path_of(name)):
        return f"is {name!r}, but a hash pins one file; write an entry a file, without a pattern"
    if not _HASH.fullmatch(pin):
        how = f"`curl -sL {url} | sha256sum`" if scheme in ("http", "https") else "`sha256sum`"
        return (
            f"is {name!r}, whose content can change; write {url}#sha256=<64 hex digits, which "
            f"{how} prints>"
        )
    return None


def _wrong_hub(name: str) -> str | None:
    found = hub(name)
    if found is None:
        return f"is {name!r}, but must be hf://datasets/OWNER/NAME@COMMIT/PATH"
    if not _COMMIT.fullmatch(found.commit or ""):
        return (
            f"is {name!r}, which is pinned to no commit; a branch or tag can move: write "
            f"hf://datasets/{found.repo}@<40 hex digits of a commit>/{found.path}"
        )
    return None


# --- what is there --------------------------------------------------------------------------------


def files(raw: Path, name: str) -> list[str]:
    """The files below `raw` that a name or a glob matches, sorted; hidden ones only by their name."""
    if not is_glob(name) or (raw / name).is_file():
        return [name] if (raw / name).is_file() else []
    found = glob.glob(name, root_dir=raw, recursive=True)  # noqa: PTH207 - hidden files stay out
    return sorted(Path(path).as_posix() for path in found if (raw / path).is_file())


def not_found(raw: Path, sources: Sequence[Named]) -> Iterator[tuple[int, str]]:
    """What the raw data lacks of what the sources name; wrong names are `wrong_names`' to tell."""
    taken: dict[str, str] = {}
    for index, (name, container) in enumerate(sources):
        if name is None or is_url(name) or wrong_name(name, container):
            continue
        found = files(raw, name)
        if not found:
            yield index, _missing(raw, name)
        elif fault := _unusable(raw, name, found, container):
            yield index, fault
        elif twice := [path for path in found if taken.get(path, name) != name]:
            yield index, f"is {name!r}, but an entry above reads {twice[0]} already; drop one"
        taken.update(dict.fromkeys(found, name))


def _missing(raw: Path, name: str) -> str:
    if Path(f"{raw}.dvc").is_file() and not raw.is_dir():
        return f"is {name!r}, but {raw} is not here; `dvc pull {raw}` brings it"
    there = sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file())
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    holds = (
        f"which holds {', '.join(there[:_SHOWN])}{more}" if there else "which is empty or missing"
    )
    if is_glob(name):
        return f"is {name!r}, which matches nothing below {raw}, {holds}; mend the pattern"
    return f"is {name!r}, not found below {raw}, {holds}; put the file there, or mend its name"


def _unusable(raw: Path, name: str, found: list[str], container: Container | None) -> str | None:
    for path in found:
        if not (raw / path).resolve().is_relative_to(raw.resolve()):
            return (
                f"is {name!r}, but {path} is a link that leads out of {raw}; put the file itself "
                "there (`dvc config cache.type copy` where DVC made the link)"
            )
        if not form(path, container).known:
            return f"is {name!r}, which matches {path}, whose container is not known; {_NAME_IT}"
    return None
