"""What decides where rows go, as columns: a million rows in some hundred megabytes.

The records stay in their files. A row's number counts through chat.jsonl, preference.jsonl and
text.jsonl; what is needed of a record again is read again, by the place of its line.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from tasks.dataset import boilerplate, duplicates, ngrams, quality, records
from tasks.dataset.lines import Lines
from tasks.dataset.ngrams import Hashes, Ints, WordStore
from tasks.lineage.console import log
from tasks.model import chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = records.KINDS
CHAT, PREFERENCE, TEXT = range(3)
ROLES = ("train", "general", "test", "regression", "benchmark")
TRAIN, GENERAL, TEST, REGRESSION, BENCHMARK = range(5)

NO_TIME = np.iinfo(np.int64).min
NO_GROUP = np.uint64(0)

BYTES_FOR_PROCESSES = 30_000_000
"""Of input, from which a second process is worth the seconds in which it starts."""

_TOKENS = np.dtype((np.int32, 2))


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be rendered for training; `reason` is what rejects are counted by."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Columns:
    """A column an array, a row an element."""

    kind: NDArray[np.int8]
    """CHAT, PREFERENCE or TEXT."""
    role: NDArray[np.int8]
    """A place in ROLES."""
    source: NDArray[np.int32]
    """A place in `sources`."""
    time: Ints
    """Microseconds since 1970 in UTC, or NO_TIME."""
    group: Hashes
    """Of the group's name; NO_GROUP where there is none."""
    key: Hashes
    """Of source and id."""
    label: Hashes
    """Of what a chat's last answer means, or the field of it that is stratified by."""
    tokens: NDArray[np.int32]
    """Shape (rows, 2): of the rendered chat, 0; of a preference's chosen and rejected answer."""
    supervised: NDArray[np.int32]
    """Shape (rows, 2): how many of the tokens are trained on."""
    answers_left_out: NDArray[np.int32]
    """Earlier answers that are context alone, since the template rewrites them."""
    sources: list[str]
    faults: dict[int, Fault]
    """By row."""

    def __len__(self) -> int:
        return len(self.kind)


class Rows:
    """The columns of a data folder, its records, and its words."""

    def __init__(
        self, columns: Columns, files: Sequence[Lines], words: WordStore, by: str | None
    ) -> None:
        self.columns = columns
        self.words = words
        self._files = files
        self._by = by
        self._first = np.cumsum([0, *map(len, files)])

    def record(self, row: int) -> Any:
        """The record of a row."""
        file, number = self._place(row)
        return self._files[file].record(number)

    def records(self, rows: Ints) -> list[Any]:
        """The records of some rows, in ascending order; rows that lie close are read together."""
        if not len(rows):
            return []
        (file, first), (last_file, last) = self._place(int(rows[0])), self._place(int(rows[-1]))
        if file != last_file or last - first > 2 * len(rows):
            return [self.record(row) for row in rows.tolist()]
        found = self._files[file].records(first, last + 1)
        return [found[number] for number in (rows - rows[0]).tolist()]

    def _place(self, row: int) -> tuple[int, int]:
        """The file that a row is in, and the number of its line."""
        file = int(np.searchsorted(self._first, row, "right")) - 1
        return file, row - int(self._first[file])

    def name(self, row: int) -> str:
        """Source and id of a row, for people."""
        record = self.record(row)
        return f"{record['source']} {record['id']}"

    def names(self, rows: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Source and id of some rows."""
        found = ((row, self.record(row)) for row in rows)
        return {row: (record["source"], record["id"]) for row, record in found}

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every row's number and line, in order."""
        for first, file in zip(self._first.tolist(), self._files, strict=False):
            for begin, end in file.batches():
                yield from enumerate(file.read(begin, end), start=first + begin)

    def batches(self) -> Iterator[tuple[int, int]]:
        """The rows at which batches begin and end that memory holds, however long the rows are."""
        for first, file in zip(self._first.tolist(), self._files, strict=False):
            for begin, end in file.batches():
                yield first + begin, first + end

    def line(self, row: int) -> bytes:
        """The line of a row."""
        file, number = self._place(row)
        return self._files[file].read(number, number + 1)[0]

    def label(self, row: int) -> str:
        """The class of a chat."""
        return label(self.record(row), self._by)


class UserTexts(Sequence[str]):
    """What the user says in some rows, in ascending order, and the texts of documents; without
    boilerplate, read when it is asked for."""

    def __init__(self, rows: Rows, chosen: Ints) -> None:
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            chosen = self._chosen[index]
            found = zip(chosen.tolist(), self._rows.records(chosen), strict=True)
            return [self._own(row, records.user_text(record)) for row, record in found]
        row = int(self._chosen[index])
        return self._own(row, records.user_text(self._rows.record(row)))

    def _own(self, row: int, text: str) -> str:
        head, tail = self._rows.words.left_out(row)
        if not head and not tail:
            return text
        words = duplicates.words(text)
        return " ".join(words[head : len(words) - tail])

    def __iter__(self) -> Iterator[str]:
        for batch in self._rows.batches():
            begin, end = np.searchsorted(self._chosen, batch).tolist()
            yield from self[begin:end]


class Renderer:
    """Renders conversations to see that they fit, and counts their tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        probes = chat.render_many(chat.FIXTURES, tokenizer)
        self._has_end_of_turn = any(
            probe.ends_supervised for probe in probes if isinstance(probe, chat.Rendered)
        )

    def render(
        self, kind: int, found: Sequence[Any]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], dict[int, Fault]]:
        """Tokens, supervised tokens, answers left out, faults. Rows that are only compared with are
        not rendered."""
        tokens, supervised = np.zeros((2, len(found), 2), np.int32)
        left_out = np.zeros(len(found), np.int32)
        faults: dict[int, Fault] = {}
        where: list[tuple[int, int]] = []
        conversations: list[list[chat.Message]] = []
        if kind != TEXT:
            for row, record in enumerate(found):
                if record["role"] != ROLES[BENCHMARK]:
                    for side, messages in enumerate(_conversations(record)):
                        where.append((row, side))
                        conversations.append(messages)
        rendered = chat.render_many(conversations, self._tokenizer)
        for (row, side), one in zip(where, rendered, strict=True):
            if isinstance(one, chat.ChatError):
                faults.setdefault(row, Fault(one.reason, str(one)))
                continue
            tokens[row, side] = len(one.ids)
            supervised[row, side] = sum(one.mask)
            left_out[row] = one.answers_left_out  # of the prompt, which both sides share
            if fault := self._fault(one):
                faults.setdefault(row, fault)
        return tokens, supervised, left_out, faults

    def _fault(self, rendered: chat.Rendered) -> Fault | None:
        length = len(rendered.ids)
        if length > self._max_tokens:
            detail = f"{length} tokens, more than {self._max_tokens}; its answer would be cut off"
            return Fault("too_long", detail)
        if not any(rendered.mask):
            return Fault("nothing_supervised", "no token of it would be trained on")
        if self._has_end_of_turn and not rendered.ends_supervised:
            detail = "an answer's last token that is trained on is not the end of its turn"
            return Fault("end_of_turn_unsupervised", detail)
        return None


@dataclass(frozen=True)
class Reading:
    """What to read, and how."""

    data: Path
    """A folder that `validate` wrote."""
    base: Path
    """The model folder whose tokenizer conversations are rendered with."""
    max_tokens: int
    by: str | None
    """The field of the JSON answer that is its class; None takes the whole answer."""


@contextlib.contextmanager
def read(
    reading: Reading, tokenizer: PreTrainedTokenizerFast, scratch: IO[bytes], processes: int
) -> Iterator[Rows]:
    """Read all records of a folder once; what is found is open as long as the context.

    Args:
        tokenizer: that of `reading.base`.
        scratch: an empty file for the words.
        processes: that large inputs are read with. What is read does not depend on it.

    Raises:
        StageError: at a line that is no JSON.
    """
    words = WordStore(scratch)
    with contextlib.ExitStack() as stack:
        files = []
        for kind in KINDS:
            files.append(Lines(reading.data / f"{kind}.jsonl"))
            stack.callback(files[-1].close)
        tasks = [
            (kind, begin, end) for kind, file in enumerate(files) for begin, end in file.batches()
        ]
        parts = _Parts()
        conversations = sum(file.size for file in files[:TEXT])
        many = processes > 1 and conversations > BYTES_FOR_PROCESSES
        with _summariser(reading, tokenizer, processes if many else 1) as summarised:
            for part in summarised(tasks):
                parts.add(part)
                words.append(part.words, part.counts, part.asked)
        found = parts.columns()
        leave_out_boilerplate(found, words)
        yield Rows(found, files, words, reading.by)


def leave_out_boilerplate(rows: Columns, words: WordStore) -> None:
    """Do without the words that the user texts of a source, of one kind, all begin or end with. A
    sample of them is looked at, which the rows' names decide."""
    asking = np.flatnonzero(rows.kind != TEXT)
    group = rows.source[asking].astype(np.int64) * len(KINDS) + rows.kind[asking]
    order = asking[np.lexsort((rows.key[asking], group))]
    groups, sizes = np.unique(group, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    samples = [order[start : start + boilerplate.SAMPLE] for start in starts.tolist()]
    samples = [sample[: sizes[place]] for place, sample in enumerate(samples)]
    shared = [boilerplate.find(texts) for texts in words.asked(samples)]
    for name, found in zip(groups.tolist(), shared, strict=True):
        if found:
            log.info(
                "%s: its texts begin with the same %d words and end with the same %d, which are "
                "left out where texts are compared",
                rows.sources[name // len(KINDS)], len(found.beginning), len(found.end),
            )  # fmt: skip
    if any(shared):
        asked = words.blocks(rows.kind != TEXT, asked=True)
        words.leave_out(*boilerplate.measure(asked, shared, len(rows)))


@dataclass(frozen=True)
class _Part:
    """The columns of a batch of one kind; faults and sources count from its first row."""

    kind: int
    role: NDArray[np.int8]
    source: NDArray[np.int32]
    sources: list[str]
    time: Ints
    group: Hashes
    key: Hashes
    label: Hashes
    tokens: NDArray[np.int32]
    supervised: NDArray[np.int32]
    answers_left_out: NDArray[np.int32]
    faults: dict[int, Fault]
    words: Hashes
    counts: Ints
    asked: Ints


class _Parts:
    def __init__(self) -> None:
        self._parts: list[Columns] = []
        self._sources: dict[str, int] = {}
        self._faults: dict[int, Fault] = {}
        self._shared: dict[Fault, Fault] = {}  # most rows fail for one of a few reasons
        self._rows = 0

    def add(self, part: _Part) -> None:
        codes = [self._sources.setdefault(name, len(self._sources)) for name in part.sources]
        for row, fault in part.faults.items():
            self._faults[self._rows + row] = self._shared.setdefault(fault, fault)
        kind = np.full(len(part.role), part.kind, np.int8)
        source = np.array(codes, np.int32)[part.source]
        self._parts.append(
            Columns(
                kind, part.role, source, part.time, part.group, part.key, part.label,
                part.tokens, part.supervised, part.answers_left_out, [], {},
            )
        )  # fmt: skip
        self._rows += len(part.role)

    def columns(self) -> Columns:
        def joined(name: str, dtype: Any) -> Any:
            return np.concatenate(
                [np.empty(0, dtype), *(getattr(part, name) for part in self._parts)]
            )

        return Columns(
            kind=joined("kind", np.int8),
            role=joined("role", np.int8),
            source=joined("source", np.int32),
            time=joined("time", np.int64),
            group=joined("group", np.uint64),
            key=joined("key", np.uint64),
            label=joined("label", np.uint64),
            tokens=joined("tokens", _TOKENS),
            supervised=joined("supervised", _TOKENS),
            answers_left_out=joined("answers_left_out", np.int32),
            sources=list(self._sources),
            faults=self._faults,
        )


_Task = tuple[int, int, int]
"""A kind, and the first line and the line behind the last of it."""


@contextlib.contextmanager
def _summariser(
    reading: Reading, tokenizer: PreTrainedTokenizerFast, processes: int
) -> Iterator[Callable[[Iterable[_Task]], Iterator[_Part]]]:
    """A function from tasks to parts, in the same order."""
    if processes == 1:
        with contextlib.closing(_Worker(reading, tokenizer)) as worker:
            yield lambda tasks: map(worker.summarise, tasks)
        return
    context = multiprocessing.get_context("spawn")  # the runner has threads, which no fork survives
    with ProcessPoolExecutor(processes, context, _start, (reading,)) as pool:
        yield lambda tasks: _in_order(pool, tasks, ahead=4 * processes)


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[_Task], ahead: int) -> Iterator[_Part]:
    """The parts in the order of the tasks, of which a few are worked on ahead."""
    running: deque[Future[_Part]] = deque()
    for task in tasks:
        running.append(pool.submit(_summarise, task))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


_worker: _Worker | None = None


def _start(reading: Reading) -> None:
    from tasks.lineage import process

    global _worker
    process.die_with_parent()
    _worker = _Worker(reading, chat.load_tokenizer(reading.base))


def _summarise(task: _Task) -> _Part:
    assert _worker is not None  # the pool starts its processes with `_start`
    return _worker.summarise(task)


class _Worker:
    """Makes columns of records."""

    def __init__(self, reading: Reading, tokenizer: PreTrainedTokenizerFast) -> None:
        self._files = [Lines(reading.data / f"{kind}.jsonl") for kind in KINDS]
        self._renderer = Renderer(tokenizer, reading.max_tokens)
        self._by = reading.by

    def close(self) -> None:
        for file in self._files:
            file.close()

    def summarise(self, task: _Task) -> _Part:
        kind, begin, end = task
        found = self._files[kind].records(begin, end)
        sources: dict[str, int] = {}
        source = [sources.setdefault(record["source"], len(sources)) for record in found]
        tokens, supervised, left_out, faults = self._renderer.render(kind, found)
        words, counts, asked = _words(found)
        return _Part(
            kind=kind,
            role=np.array([ROLES.index(record["role"]) for record in found], np.int8),
            source=np.array(source, np.int32),
            sources=list(sources),
            time=np.array([_microseconds(record["time"]) for record in found], np.int64),
            group=np.array([_group(record["group"]) for record in found], np.uint64),
            key=np.array([key(record["source"], record["id"]) for record in found], np.uint64),
            label=np.array([_label(record, self._by) for record in found], np.uint64),
            tokens=tokens,
            supervised=supervised,
            answers_left_out=left_out,
            faults=faults,
            words=words,
            counts=counts,
            asked=asked,
        )


def _conversations(record: Mapping[str, Any]) -> list[list[chat.Message]]:
    if "messages" in record:
        return [record["messages"]]
    return [
        [*record["prompt"], {"role": "assistant", "content": record[answer]}]
        for answer in ("chosen", "rejected")
    ]


def _words(found: Sequence[Any]) -> tuple[Hashes, Ints, Ints]:
    """All words of each record with a barrier before each answer, how many they are, and how many
    of them are asked."""
    parts = [[records.user_text(record), *_answers(record)] for record in found]
    answers = np.array([len(texts) - 1 for texts in parts], np.int64)
    words, counts = ngrams.words([text for texts in parts for text in texts])
    first = np.cumsum(answers + 1) - (answers + 1)  # of the parts, where each record begins
    behind = np.ones(len(counts), np.bool_)
    behind[first] = False
    starts = np.cumsum(counts) - counts
    words = np.insert(words, starts[behind], ngrams.BARRIER)
    counts = counts + behind
    total = np.add.reduceat(counts, first) if len(first) else counts
    return words, total, counts[first]


def _answers(record: Mapping[str, Any]) -> list[str]:
    if "text" in record:
        return []
    if "messages" in record:
        return [m["content"] for m in record["messages"] if m["role"] == "assistant"]
    earlier = [m["content"] for m in record["prompt"] if m["role"] == "assistant"]
    return [*earlier, record["chosen"], record["rejected"]]


def label(record: Mapping[str, Any], by: str | None) -> str:
    """The class of a chat: its last answer, or a field of it as JSON; where the answer is no JSON
    object with that field, the whole answer."""
    answer: str = record["messages"][-1]["content"]
    if by is not None:
        with contextlib.suppress(orjson.JSONDecodeError):
            fields = orjson.loads(answer)
            if isinstance(fields, dict) and by in fields:
                value = fields[by]
                return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return answer


def _label(record: Mapping[str, Any], by: str | None) -> int:
    return quality.meaning(label(record, by)) % 2**64 if "messages" in record else 0


def key(source: str, id: str) -> int:
    """A number that stands for a row whatever other rows there are."""
    return _digest(f"{source}\0{id}")


def _group(name: str | None) -> int:
    return int(NO_GROUP) if name is None else _digest(name) | 1


def _digest(text: str) -> int:
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little")


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


def microseconds(time: str) -> int:
    """A point in time from ISO 8601 as microseconds since 1970; without an offset it is UTC."""
    found = datetime.datetime.fromisoformat(time)
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return (found - _EPOCH) // _MICROSECOND


def _microseconds(time: str | None) -> int:
    return int(NO_TIME) if time is None else microseconds(time)
