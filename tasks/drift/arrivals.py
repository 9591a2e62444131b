"""The arrivals: which files are new and whole, and their rows, read as the pipeline would read them.

A file that cannot be used says why and is left for people to mend; the others are checked all the
same.  Everything is streamed, so memory does not grow with the files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from tasks import ingest as reading
from tasks.dataset import contradictions, downloads, mapping, places, records, sieve
from tasks.dataset.readers import Rules
from tasks.dataset.rejects import Rejects
from tasks.drift.columns import Side
from tasks.drift.sample import Sample
from tasks.lineage import hashes
from tasks.lineage.stage import FAULT, STATE, StageError
from tasks.params import Drift, Ingest, Params, Source

WAITED_SECONDS = 0.05
"""Between looks at the clock; that clock does not jump."""

State = tuple[int, int, int]
"""Of a file: inode, size, time of its last change in nanoseconds. Compared, never read as a time."""


@dataclass(frozen=True)
class Arrival:
    """A file that is new and whole, or why it is left out."""

    name: str
    """Its path below the incoming folder, or its URL without the hash."""
    like: str
    path: Path
    sha256: str = ""
    bytes: int = 0
    why_not: str | None = None
    later: bool = False
    """Left for the next check, without anybody's doing."""


@dataclass
class Read:
    """What was read of the files like one source."""

    like: str
    sample: Sample
    rejected: Counter[str] = field(default_factory=Counter)
    accepted: int = 0

    def side(self) -> Side:
        return Side(list(self.sample), self.accepted, dict(self.rejected))


def find(
    incoming: Path, drift: Drift, known: Set[str], wait: Callable[[float], None] | None = None
) -> list[Arrival]:
    """Every file that `drift.incoming` names, by its name; those that are known already are not told.

    Args:
        known: digests of files that the champion learned from, of any kind of `digests`.
        wait: for how long a file is looked at; by the monotonic clock otherwise.

    Raises:
        DownloadError: when a URL cannot be reached.
    """
    found: dict[str, Arrival] = {}
    states: dict[str, State | None] = {}
    for entry in drift.incoming:
        for name, path, fault in _named(incoming, entry.file):
            found.setdefault(name, Arrival(name, entry.like, path, why_not=fault))
    local = [one for one in found.values() if one.why_not is None and not places.is_url(one.name)]
    states = {one.name: _state(one.path) for one in local}
    if local:
        (wait or _wait)(drift.settle_seconds)
    told = [
        one
        if one.why_not
        else _settled(one, states.get(one.name), one.name in states, drift.max_bytes, known)
        for one in sorted(found.values(), key=lambda one: one.name)
    ]
    return list(_each_once(one for one in told if one is not None))


def _each_once(told: Iterable[Arrival]) -> Iterator[Arrival]:
    """A file that came under two names, or by way of a link, has its rows once."""
    first: dict[str, str] = {}
    for one in told:
        if one.why_not is None and first.setdefault(one.sha256, one.name) != one.name:
            why = f"has the content of {first[one.sha256]}, which counts; remove one of them"
            yield replace(one, why_not=why, later=True)
        else:
            yield one


def _named(incoming: Path, file: str) -> Iterator[tuple[str, Path, str | None]]:
    """Name and path of the files of an entry, and what is wrong with them before they are opened."""
    if places.is_url(file):
        try:
            for brought in downloads.fetch(file, STATE / "downloads"):
                yield brought.name, brought.path, None
        except StageError as error:
            if error.exit_code == FAULT:
                raise
            yield places.label(file), Path(), str(error)
        return
    for name in places.files(incoming, file):
        path = incoming / name
        fault = None
        if not name.isprintable():  # nor can it be written into a report, or a commit
            fault = "has a character in its name that is none to print; rename it"
        elif not path.resolve().is_relative_to(incoming.resolve()):
            fault = f"is a link that leads out of {incoming}; put the file itself there"
        elif not places.form(name, None).known:
            fault = f"is of no known container; rename it to end in {places.KNOWN}"
        yield name if name.isprintable() else repr(name)[1:-1], path, fault


def _settled(
    one: Arrival, before: State | None, local: bool, limit: int, known: Set[str]
) -> Arrival | None:
    """The arrival with its hash, if it stood still while it was looked at and hashed; None for one
    that is known already."""

    def left(why: str, later: bool = False) -> Arrival:
        return replace(one, why_not=why, later=later)

    moving = "is still being written; the next check looks at it again"
    now = _state(one.path)
    if now is None or (local and now != before):
        return left(moving, later=True)
    size = now[1]
    if size == 0:
        return left("is empty; write its rows, or remove it")
    if size > limit:
        return left(
            f"has {size:,} bytes, and drift.max_bytes is {limit:,}; split it, or raise that"
        )
    try:
        digest = hashes.file_hash(one.path, "sha256")
        old = bool(known) and not known.isdisjoint(digests(one.path))
    except _NOT_READABLE as error:
        return left(_unreadable(error), later=isinstance(error, FileNotFoundError))
    if _state(one.path) != now:
        return left(moving, later=True)
    return None if old else replace(one, sha256=digest, bytes=size)


_NOT_READABLE = (FileNotFoundError, PermissionError)


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror}); the next check looks at it again"


def _state(path: Path) -> State | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def digests(path: Path) -> set[str]:
    """By which a file may be known: sha256, DVC's md5, git's sha1."""
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    every = [hashlib.sha256(), hashlib.md5(usedforsecurity=False), git]
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            for digest in every:
                digest.update(chunk)
    return {digest.hexdigest() for digest in every}


_CHUNK_BYTES = 1 << 20


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, WAITED_SECONDS))


def digest(sha256: Iterable[str]) -> str:
    """The id of data: sha256 over the sorted sha256 of its files."""
    return hashlib.sha256("\n".join(sorted(set(sha256))).encode()).hexdigest()


@dataclass(frozen=True)
class Reading:
    """What came of reading the arrivals."""

    files: list[dict[str, Any]]
    """file, like, sha256, bytes, rows, rejected."""
    read: dict[str, Read]
    """By the source that they are like."""
    left_out: list[Arrival]


def read(arrivals: Sequence[Arrival], params: Params, folder: Path) -> Reading:
    """Read files strictly, take out personal data and what breaks the contract, and draw a sample.

    Args:
        folder: for what is read; it is removed afterwards.
    """
    done = Reading([], {}, [])
    sources = {source.file: source for source in params.ingest.sources}
    for one in arrivals:
        place = folder / one.sha256
        try:
            done.files.append(_read(one, sources[one.like], params, place, done.read))
        except _NOT_READABLE as error:
            done.left_out.append(replace(one, why_not=_unreadable(error), later=True))
        except StageError as error:
            why = str(error).removeprefix(f"{one.name}: ").removeprefix(f"{one.name} ")
            done.left_out.append(replace(one, why_not=why))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return done


def _read(
    one: Arrival, like: Source, params: Params, place: Path, read: dict[str, Read]
) -> dict[str, Any]:
    state = _state(one.path)
    reasons = _ingest(one, like, params.ingest, place, params.drift.max_bytes)
    rows = Read(one.like, Sample(params.drift.sample_rows, params.compute.seed), Counter(reasons))
    _sift(place / "records", params, rows)
    if _state(one.path) != state or hashes.file_hash(one.path, "sha256") != one.sha256:
        raise StageError("changed while it was read; the next check looks at it again")
    whole = read.setdefault(
        one.like, Read(one.like, Sample(params.drift.sample_rows, params.compute.seed))
    )
    for record in rows.sample:
        whole.sample.add(record)
    whole.accepted += rows.accepted
    whole.rejected.update(rows.rejected)
    rejected = sum(rows.rejected.values())
    return {
        "file": one.name,
        "like": one.like,
        "sha256": one.sha256,
        "bytes": one.bytes,
        "rows": rows.accepted + rejected,
        "rejected": rejected,
        "reasons": dict(sorted(rows.rejected.items())),
    }


def _ingest(
    one: Arrival, like: Source, ingest: Ingest, place: Path, limit: int
) -> Mapping[str, int]:
    """Write the records of a file, as stage ingest does. Returns the rejected rows by reason."""
    source = like.model_copy(update={"file": one.name})
    form = places.form(places.path_of(one.name), reading.container_of(source))
    file = reading.File(one.name, one.path, form)
    rules = Rules(ingest.max_line_bytes, ingest.hidden_characters == "reject", source.columns)
    mapper = mapping.mapper(source, f"the source {one.like}")
    with records.writing(place / "records") as writer, _Counted(limit) as rejects:
        bounded = _Bounded(writer, limit)
        counts = reading.Reading(file, source, mapper, bounded, rejects).run(rules)
        mapper.finish()
    reasons: Mapping[str, int] = counts["rejected"]
    return reasons


class _Counted(Rejects):
    """Counts rows without keeping them, and stops where a small file unpacks to gigantically many."""

    def __init__(self, limit: int) -> None:
        super().__init__(Path(os.devnull))
        self._limit = limit
        self._bytes = 0

    def add(self, source: str, reason: str, detail: str, row: bytes | str, **about: Any) -> None:
        self._bytes += len(row) + 1
        if self._bytes > self._limit:
            raise _too_much(self._limit)
        super().add(source, reason, detail, row, **about)


def _too_much(limit: int) -> StageError:
    return StageError(f"unpacks to more than drift.max_bytes ({limit:,}); split it, or raise that")


class _Bounded(records.Writer):
    """Stops where a small file unpacks to a gigantic one."""

    def __init__(self, writer: records.Writer, limit: int) -> None:
        self._writer = writer
        self._limit = limit
        self._bytes = 0
        self.rows = writer.rows

    def write_line(self, name: str, line: bytes) -> None:
        self._bytes += len(line)
        if self._bytes > self._limit:
            raise _too_much(self._limit)
        self._writer.write_line(name, line)


def _sift(folder: Path, params: Params, rows: Read) -> None:
    """Take in the records that stage validate would let through; count the others."""
    kept = sieve.Kept()
    clean = folder.with_name("clean.jsonl")
    with clean.open("wb") as file:
        for sifted in sieve.sift(folder, params.validate_):
            kept.add(sifted)
            rows.rejected.update(row.reason for row in sifted.rejected)
            for piece in sifted.clean():
                file.write(piece)
    clashing: set[int] = set()
    if params.validate_.contradictions == "reject":
        chats, train = kept.columns("chat"), kept.train()
        clashes = contradictions.find(chats["prompt"][train], chats["answer"][train])
        clashing = set(train[clashes.rows].tolist())
    with clean.open("rb") as file:
        for number, line in enumerate(file):
            if number in clashing:  # a file has records of one kind alone
                rows.rejected["contradiction"] += 1
                continue
            rows.accepted += 1
            rows.sample.add(orjson.loads(line))
