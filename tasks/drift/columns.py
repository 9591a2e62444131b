"""Rows of both sides as columns: their words, the classes of their answers, their languages, and which
of them belong together.

Rows that belong together (a conversation, near-duplicates) are a *unit*.  A unit stays on one side of
every fold, and counts once in every test: rows of one origin are no independent evidence.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from tasks.dataset import duplicates, quality, records
from tasks.drift import languages
from tasks.evaluation import answers, task
from tasks.params import NearDuplicates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

MOST_CLASSES = 200
"""Distinct values up to which a field of the answers is a class."""
NONE = "(none)"
"""The class of an answer that does not have the field."""
WHOLE = "answer"
"""The name of the field, where the whole answer is a class."""

_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class Side:
    """The rows of one side: those that the champion learned from, or the arrivals.

    `records` is a sample of those that were accepted, `rejected` counts all that were not by reason.
    """

    records: Sequence[Mapping[str, Any]]
    accepted: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    with_copies: Sequence[Mapping[str, Any]] | None = None
    """A sample before near-duplicates were left out, as stage format does of what is trained on;
    None where `records` is that."""

    @property
    def rows(self) -> int:
        """All rows that came in."""
        return self.accepted + sum(self.rejected.values())


@dataclass(frozen=True)
class Columns:
    """A column a trait, a row an element; the rows of `before` first."""

    records: list[Mapping[str, Any]]
    arrived: Flags
    """Which rows are arrivals."""
    prompts: list[str]
    answers: list[str]
    prompt_words: Bags
    words: Bags
    """Of prompt and answer; a class stands there as `field=value`, a word of a free answer as
    `answer:word`."""
    fields: dict[str, list[str]]
    """The classes of the answers by field; empty where answers are free text."""
    languages: list[str]
    unit: Ints
    """The name of each row's unit."""

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class Bags:
    """Which words a row has: pairs of row and word, each once."""

    vocabulary: list[str]
    row: Ints
    word: Ints
    rows: int

    def matrix(self) -> Any:
        """Rows x words, 1 where the row has the word."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self.row), np.float32)
        return csr_matrix((ones, (self.row, self.word)), (self.rows, len(self.vocabulary)))

    def hashed(self, buckets: int) -> Any:
        """Rows x buckets, rows of length 1, with a constant behind the last bucket."""
        from scipy.sparse import csr_matrix, hstack

        places = np.array([crc32(word.encode()) % buckets for word in self.vocabulary], np.int64)
        ones = np.ones(len(self.row), np.float32)
        counts = csr_matrix(
            (ones, (self.row, places[self.word] if len(places) else self.word)),
            (self.rows, buckets),
        )
        counts.sum_duplicates()
        lengths = np.sqrt(counts.multiply(counts).sum(axis=1)).A1
        counts = counts.multiply(1 / np.maximum(lengths, 1)[:, None]).tocsr()
        constant = csr_matrix(np.ones((self.rows, 1), np.float32))
        return hstack([counts, constant], format="csr", dtype=np.float32)


def build(before: Side, after: Side, near: NearDuplicates, seed: int) -> Columns:
    """The columns of both sides.  Of near-duplicates on one side the first is kept, since training has
    no others."""
    found = [*before.records, *after.records]
    asked = [records.user_text(row) for row in found]
    names = clusters(asked, near, seed)
    came = np.arange(len(found)) >= len(before.records)
    kept = np.sort(np.unique(names * 2 + came, return_index=True)[1])
    arrived = came[kept]
    rows = [found[at] for at in kept.tolist()]
    prompts = [asked[at] for at in kept.tolist()]
    given = ["" if "text" in row else quality.answer(row) for row in rows]
    fields = classes(given, int((~arrived).sum()))
    texts = [duplicates.words(prompt) for prompt in prompts]
    labels = [
        [f"{name}={column[at]}" for name, column in fields.items()] for at in range(len(rows))
    ]
    if not fields:
        labels = [[f"answer:{word}" for word in duplicates.words(answer)] for answer in given]
    prompt_words = _bags(texts)
    return Columns(
        records=rows,
        arrived=arrived,
        prompts=prompts,
        answers=given,
        prompt_words=prompt_words,
        words=_joined(prompt_words, _bags(labels)),
        fields=fields,
        languages=languages.guess_all(texts),
        unit=units(rows, names[kept]),
    )


def classes(given: Sequence[str], before: int) -> dict[str, list[str]]:
    """The classes of each answer by field, where the first `before` answers are classes at all."""
    known = given[:before]
    kind = task.detect(known) if any(known) else "generation"
    if kind == "classification":
        return {WHOLE: [answer.strip() or NONE for answer in given]}
    if kind == "generation":
        return {}
    found = [_fields(answer) for answer in given]
    names = dict.fromkeys(name for fields in found[:before] for name in fields)
    columns = {name: [fields.get(name, NONE) for fields in found] for name in names}
    return {
        name: column
        for name, column in columns.items()
        if len(set(column[:before])) <= min(MOST_CLASSES, max(2, before / 2))
    }


@lru_cache(1 << 14)
def _fields(answer: str) -> Mapping[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in answers.fields(answer).items()
    }


def _bags(texts: Sequence[Sequence[str]]) -> Bags:
    """A number is told by its digits' count alone: no two references are the same word."""
    seen: dict[str, int] = {}
    number = seen.setdefault
    codes = np.array([number(word, len(seen)) for text in texts for word in text], np.int64)
    known: dict[str, int] = {}
    names = [known.setdefault(_DIGIT.sub("0", word), len(known)) for word in seen]
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    width = max(1, len(known))
    pairs = np.unique(rows * width + np.array(names, np.int64)[codes])
    of_row, of_word = np.divmod(pairs, width)
    return Bags(list(known), of_row, of_word, len(texts))


def _joined(left: Bags, right: Bags) -> Bags:
    """Bags of the same rows, whose words are told apart."""
    row = np.concatenate([left.row, right.row])
    word = np.concatenate([left.word, right.word + len(left.vocabulary)])
    return Bags([*left.vocabulary, *right.vocabulary], row, word, left.rows)


def clusters(prompts: Sequence[str], near: NearDuplicates, seed: int) -> Ints:
    """The name of each prompt's cluster of near-duplicates."""
    return np.asarray(duplicates.clusters(prompts, near, seed).labels(), np.int64)


def units(rows: Sequence[Mapping[str, Any]], cluster: Ints) -> Ints:
    """The name of each row's unit: near-duplicates of one another, and rows of one group."""
    partition = duplicates.Partition(len(rows))
    first: dict[object, int] = {}
    for row, (record, name) in enumerate(zip(rows, cluster.tolist(), strict=True)):
        partition.join(row, first.setdefault(name, row))
        if record["group"] is not None:
            partition.join(row, first.setdefault((record["source"], record["group"]), row))
    return np.asarray(partition.labels(), np.int64)


def counted(values: Sequence[str], rows: Ints) -> Counter[str]:
    """How often each value stands in some rows."""
    return Counter(values[row] for row in rows.tolist())
