"""One pass over the ingested lines: what goes on as it is, what is changed, what is rejected.

The files are cut into parts at line ends.  A part gives back what is to be edited in it and a column
for each number about its rows; so a large input goes through two processes and back in order, and
little is carried between them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tasks.dataset import privacy, quality, records
from tasks.dataset.faults import RowError
from tasks.lineage.process import die_with_parent
from tasks.lineage.stage import StageError
from tasks.params import Validate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUITES = (
    *("chat-train", "chat-general", "chat-test", "chat-regression", "chat-benchmark"),
    *("preference", "text"),
)
"""Kinds of records that are judged apart: chats by what they are for."""

TRAIN = SUITES.index("chat-train")
_SUITE = {name: number for number, name in enumerate(SUITES)}
_CHAT_SUITES = {suite.removeprefix("chat-"): suite for suite in SUITES if suite.startswith("chat-")}

PART_BYTES = 4_000_000
BYTES_FOR_PROCESSES = 24_000_000
"""Of input, from which more processes are worth the half second in which they start."""
MOST_PROCESSES = 4

Columns = dict[str, "NDArray[Any]"]
"""Numbers about rows that go out, in the order of the file, a column a name of NAMES.

`suite`: its place in SUITES; `bytes`: of the line; `row`: digest of source and id; `personal_data`:
how much is left of it; `valid_answer`: 0 or 1; `prompt`, `answer`, `shape`: digests.  The others are
in characters.
"""

_COMMON = {"suite": "i1", "bytes": "i4", "row": "i8", "personal_data": "i4"}
_ANSWERED = {
    **_COMMON,
    "shortest_prompt": "i4",
    "longest_prompt": "i4",
    "shortest_answer": "i4",
    "longest_answer": "i4",
    "valid_answer": "i1",
}
NAMES: dict[records.Kind, dict[str, str]] = {
    "chat": {**_ANSWERED, "prompt": "i8", "answer": "i8", "shape": "i8"},
    "preference": _ANSWERED,
    "text": {**_COMMON, "characters": "i4"},
}


@dataclass(frozen=True, slots=True)
class Part:
    """Whole lines of a file, by their first byte and the byte behind the last."""

    kind: records.Kind
    path: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row of a suite that does not go on; `text` is what the user says in it."""

    suite: str
    source: str
    id: str
    reason: str
    detail: str
    text: str


@dataclass(slots=True)
class Sifted:
    """What came of a part.

    `edits`: (first byte, byte behind the last, new line or nothing) within the part, in order;
    whatever no edit covers goes on as it is.  `suites_in`: how many rows each suite has in it.
    """

    part: Part
    rows: int = 0
    edits: list[tuple[int, int, bytes]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)
    suites_in: Counter[str] = field(default_factory=Counter)
    redacted: Counter[privacy.Kind] = field(default_factory=Counter)
    judged: int = 0
    valid: int = 0

    def clean(self) -> Iterator[memoryview]:
        """The lines that go on, as a few long pieces."""
        with self.part.path.open("rb") as file:
            file.seek(self.part.start)
            lines = memoryview(file.read(self.part.end - self.part.start))
        last = 0
        for start, end, line in self.edits:
            yield lines[last:start]
            yield memoryview(line)
            last = end
        yield lines[last:]


class Kept:
    """The numbers about all rows that go on, and counts of what was met on the way."""

    def __init__(self) -> None:
        self.rows_in: Counter[str] = Counter(dict.fromkeys(records.KINDS, 0))
        self.redacted: Counter[privacy.Kind] = Counter(dict.fromkeys(privacy.KINDS, 0))
        self.judged = self.valid = 0
        self._suites_in = Counter({"chat-train": 0})  # checked even when it has no rows
        self._rejected: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._parts: dict[records.Kind, list[Columns]] = {kind: [] for kind in records.KINDS}
        self._columns: dict[records.Kind, Columns] = {}

    def add(self, sifted: Sifted) -> None:
        """Take note of a part."""
        self.rows_in[sifted.part.kind] += sifted.rows
        self.redacted.update(sifted.redacted)
        self.judged += sifted.judged
        self.valid += sifted.valid
        self._suites_in.update(sifted.suites_in)
        for row in sifted.rejected:
            self._rejected[row.suite][_group(row.reason)] += 1
        self._parts[sifted.part.kind].append(sifted.columns)

    def columns(self, kind: records.Kind) -> Columns:
        """The columns of all parts of a kind."""
        import numpy as np

        if kind not in self._columns:
            parts = self._parts.pop(kind)
            self._columns[kind] = {
                name: np.concatenate([np.empty(0, width), *(part.pop(name) for part in parts)])
                for name, width in NAMES[kind].items()
            }
        return self._columns[kind]

    def rows_out(self, kind: records.Kind) -> int:
        """Rows of a kind that go on."""
        return len(self.columns(kind)["row"])

    def train(self) -> NDArray[np.int64]:
        """Numbers of the train chats among the lines of chat.jsonl."""
        import numpy as np

        return np.flatnonzero(self.columns("chat")["suite"] == TRAIN)

    def drop_chats(self, numbers: NDArray[np.int64]) -> None:
        """Forget lines of chat.jsonl, which are train chats that contradict one another."""
        import numpy as np

        self._rejected["chat-train"]["contradiction"] += len(numbers)
        columns = self.columns("chat")
        for name, column in columns.items():
            columns[name] = np.delete(column, numbers)

    def reject_shares(self) -> dict[str, float]:
        """`<suite> <group of reasons>`: rejected rows over all rows of the suite that came in."""
        return {
            f"{suite} {group}": self._rejected[suite][group] / self._suites_in[suite]
            for suite in SUITES
            if self._suites_in[suite]
            for group in sorted(self._rejected[suite])
        }

    def tables(self) -> dict[str, Columns]:
        """The numbers of each suite that had rows, in the order of SUITES."""
        found: dict[str, Columns] = {}
        for number, suite in enumerate(SUITES):
            if suite in self._suites_in:
                columns = self.columns("chat" if suite.startswith("chat-") else _kind(suite))
                rows = columns["suite"] == number
                found[suite] = {
                    name: column[rows] for name, column in columns.items() if name not in _NO_CHECK
                }
        return found


def _group(reason: str) -> str:
    """Reasons that have one cause: personal data, the length of a prompt, an answer at fault."""
    if reason in ("unknown_label", "schema"):
        return "answer"
    return "personal_data" if reason.startswith("personal_data") else reason.partition("_")[0]


_NO_CHECK = ("suite", "bytes", "prompt", "shape")


def _kind(suite: str) -> records.Kind:
    return next(kind for kind in records.KINDS if kind == suite)


def sift(data: Path, settings: Validate) -> Iterator[Sifted]:
    """Every part of the three record files of a folder, in order.

    Raises:
        StageError: at a line that is no record.
    """
    parts = [part for kind in records.KINDS for part in _parts(kind, data / f"{kind}.jsonl")]
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if processes < 2 or sum(part.end - part.start for part in parts) < BYTES_FOR_PROCESSES:
        before = Counter[records.Kind]()
        sieve = _Sieve(settings, lambda texts: map(privacy.suspicious, texts))
        for part in parts:
            yield _numbered(sieve, part, before)
    else:
        yield from _in_processes(parts, settings, processes)


def _parts(kind: records.Kind, path: Path) -> Iterator[Part]:
    if not path.is_file():
        raise StageError(
            f"{path} is not there, though ingest writes it even when it is empty; "
            f"remove {path.parent} and run stage ingest"
        )
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while start < size:
            file.seek(min(start + PART_BYTES, size))
            file.readline()
            end = min(file.tell(), size)
            yield Part(kind, path, start, end)
            start = end


class _Damaged(Exception):
    """A line of a part, counted from 1, is no record."""


def _numbered(sieve: _Sieve, part: Part, before: Counter[records.Kind]) -> Sifted:
    """What comes of a part; a fault gets the number of its line in the file."""
    try:
        sifted = sieve.sift(part)
    except _Damaged as error:
        line, fault = error.args
        raise records.damaged(part.path, before[part.kind] + line, fault) from None
    before[part.kind] += sifted.rows
    return sifted


_own: _Sieve | None = None


def _start(settings: Validate) -> None:
    global _own
    die_with_parent()
    gc.disable()  # rows are no cycles, and looking for some in them takes a sixth of the time
    _own = _Sieve(settings, privacy.screen)  # Arrow is slow to import and fast to search


def _sift_in_process(part: Part) -> Sifted | tuple[int, str]:
    assert _own is not None
    try:
        return _own.sift(part)
    except _Damaged as error:
        line, fault = error.args
        return line, fault


def _in_processes(parts: list[Part], settings: Validate, processes: int) -> Iterator[Sifted]:
    before = Counter[records.Kind]()
    context = multiprocessing.get_context("spawn")  # this process may have threads
    with ProcessPoolExecutor(processes, context, _start, (settings,)) as pool:
        try:
            for part, result in zip(parts, pool.map(_sift_in_process, parts), strict=True):
                if isinstance(result, tuple):
                    line, fault = result
                    raise records.damaged(part.path, before[part.kind] + line, fault)
                before[part.kind] += result.rows
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Sieve:
    """The checks of rows, with what they remember from one part to the next.

    `screen` says of texts whether they may hold personal data.
    """

    def __init__(self, settings: Validate, screen: Callable[[list[str]], Iterable[bool]]) -> None:
        self._checks = quality.RowChecks(settings)
        self._screen = screen

    def sift(self, part: Part) -> Sifted:
        """What comes of a part.

        Raises:
            _Damaged: at a line that is no record.
        """
        import numpy as np

        with part.path.open("rb") as file:
            file.seek(part.start)
            lines = file.read(part.end - part.start).splitlines(keepends=True)
        checks = self._checks
        checks.redacted.clear()
        checks.judged = checks.valid = 0
        sifted = Sifted(part, rows=len(lines))
        numbers = array("q")  # a list a row would keep the garbage collector busy
        start = 0
        for first in range(0, len(lines), _BATCH):
            batch = lines[first : first + _BATCH]
            loaded = [_load(part.kind, line, first + at) for at, line in enumerate(batch, start=1)]
            flags = self._screen([whole for _, whole in loaded])
            for line, (record, whole), flag in zip(batch, loaded, flags, strict=True):
                place = (start, start + len(line))
                suspicious = flag or "\\" in whole
                try:
                    row = self._sift_row(record, suspicious, part.kind, line, place, sifted)
                except RowError as error:
                    sifted.edits.append((*place, b""))
                    sifted.rejected.append(_rejected(part.kind, record, error))
                else:
                    numbers.extend(row)
                start = place[1]
        names = NAMES[part.kind]
        table = np.frombuffer(numbers, np.int64).reshape(-1, len(names)).T
        sifted.columns = {
            name: column.astype(width)
            for (name, width), column in zip(names.items(), table, strict=True)
        }
        sifted.redacted = Counter(checks.redacted)
        sifted.judged, sifted.valid = checks.judged, checks.valid
        return sifted

    def _sift_row(
        self,
        record: Any,
        suspicious: bool,
        kind: records.Kind,
        line: bytes,
        place: tuple[int, int],
        sifted: Sifted,
    ) -> list[int]:
        """The numbers about a row, in the order of NAMES."""
        suite = _suite(kind, record)
        sifted.suites_in[suite] += 1
        clean, personal_data, lengths = self._checks.check(record, suspicious)
        if clean is not record or not line.endswith(b"\n"):
            line = records.dumps(clean)
            sifted.edits.append((*place, line))
        row = quality.digest(clean["source"], clean["id"])
        common = [_SUITE[suite], len(line), row, personal_data]
        if lengths is None:
            return [*common, len(clean["text"])]
        row_numbers = [*common, *lengths, self._checks.answer_is_valid(clean)]
        if kind == "preference":
            return row_numbers
        return [
            *row_numbers,
            quality.prompt_digest(clean),
            quality.answer_digest(clean),
            quality.shape(clean),
        ]


_BATCH = 1_000


def _load(kind: records.Kind, line: bytes, number: int) -> tuple[Any, str]:
    """A record and all its text.

    Raises:
        _Damaged: when it is none.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _Damaged(number, f"is no JSON: {error.msg}") from None
    if fault := shape_fault(kind, record):
        raise _Damaged(number, fault)
    return record, quality.whole_text(record)


def _suite(kind: records.Kind, record: Mapping[str, Any]) -> str:
    return _CHAT_SUITES[record["role"]] if kind == "chat" else kind


def _rejected(kind: records.Kind, record: Mapping[str, Any], error: RowError) -> Rejected:
    text, suite = records.user_text(record), _suite(kind, record)
    return Rejected(suite, record["source"], record["id"], error.reason, error.detail, text)


def shape_fault(kind: records.Kind, record: Any) -> str | None:
    """What keeps a JSON value from being a record of a kind."""
    if not isinstance(record, dict):
        return f"is no {kind} record, but {_JSON_NAMES.get(type(record), 'a number')}"
    for name in _FIELDS[kind]:
        value = record.get(name)
        if type(value) is not str and not (value is None and name in record and name in _OPTIONAL):
            wrong = "is no text" if name in record else "is not there"
            return f"is no {kind} record: {name!r} {wrong}"
    if kind != "text" and (fault := _turns_fault(record, _TURNS[kind])):
        return f"is no {kind} record: {fault}"
    if kind == "chat" and record["role"] not in _CHAT_SUITES:
        return "is no chat record: 'role' is none that ingest writes"
    return None


_OPTIONAL = ("group", "time")
_ABOUT = ("id", "source", "role", *_OPTIONAL)
_FIELDS: dict[records.Kind, tuple[str, ...]] = {
    "chat": _ABOUT,
    "preference": (*_ABOUT, "chosen", "rejected"),
    "text": (*_ABOUT, "text"),
}
_TURNS = {"chat": "messages", "preference": "prompt"}


def _turns_fault(record: Mapping[str, Any], name: str) -> str | None:
    turns = record.get(name)
    if not isinstance(turns, list):
        return f"{name!r} is no list"
    roles = set()
    for turn in turns:
        if type(turn) is not dict or type(turn.get("content")) is not str:
            return f"{name!r} holds what is no message"
        roles.add(turn.get("role"))
    for role in ("user", "assistant") if name == "messages" else ("user",):
        if role not in roles:
            return f"{name!r} has no turn of the {role}"
    return None


_JSON_NAMES = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}
