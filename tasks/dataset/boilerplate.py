"""Words that nearly all texts of a source begin or end with: a fixed prompt around what differs.

Such a prompt makes unlike texts look alike: of a hundred fixed words around ten others, every two
texts share nine tenths. So it is left out where texts are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.dataset.ngrams import Block, Flags, Hashes, Ints, spread

SAMPLE = 1_000
"""Texts of a source that are looked at."""

FEWEST_TEXTS = 10
"""Different texts from which on it can be said what they share; fewer may be copies of one."""

FEWEST_WORDS = 6
"""Of beginning and end together; fewer decide no comparison."""

ODD = 0.05
"""Share of the texts that may do without it."""

Counts = NDArray[np.int32]


@dataclass(frozen=True)
class Shared:
    """Hashes of the words that texts begin and end with; none where they share too little."""

    beginning: Hashes
    end: Hashes

    def __bool__(self) -> bool:
        return bool(len(self.beginning) or len(self.end))


def find(texts: Iterable[Hashes]) -> Shared:
    """What all but an odd few of the texts, each given by its words, begin and end with."""
    nothing = np.empty(0, np.uint64)
    distinct = sorted({_bytes(text) for text in texts})
    if len(distinct) < FEWEST_TEXTS:
        return Shared(nothing, nothing)
    forward = [np.frombuffer(text, ">u8").astype(np.uint64) for text in distinct]
    backward = sorted(_bytes(text[::-1]) for text in forward)
    reverse = [np.frombuffer(text, ">u8").astype(np.uint64) for text in backward]
    beginning, end = _beginning(forward), _beginning(reverse)[::-1]
    if len(beginning) + len(end) < FEWEST_WORDS:
        return Shared(nothing, nothing)
    return Shared(beginning, end)


def _bytes(text: Hashes) -> bytes:
    return text.astype(">u8").tobytes()  # sorted as the words are


def _beginning(texts: list[Hashes]) -> Hashes:
    """The longest beginning of all but an odd few. Texts that share one stand side by side when they
    are sorted; so where most do, the one in the middle has it too."""
    middle = texts[len(texts) // 2]
    lengths = sorted(_equal_words(text, middle) for text in texts)
    return middle[: lengths[int(ODD * len(texts))]]


def _equal_words(left: Hashes, right: Hashes) -> int:
    size = min(len(left), len(right))
    differs = np.flatnonzero(left[:size] != right[:size])
    return int(differs[0]) if len(differs) else size


def measure(blocks: Iterable[Block], found: Iterable[Shared], rows: int) -> tuple[Counts, Counts]:
    """How many words each row begins and ends with that are shared.

    Every row is held against what was found in any source, the longest first, so that equal texts
    stay equal wherever they are from. A word at least is left of each.

    Args:
        blocks: what is asked in the rows.
        rows: how many there are, those of no block included.
    """
    known = list(found)
    beginnings = _distinct(shared.beginning for shared in known)
    ends = _distinct(shared.end[::-1] for shared in known)
    head, tail = np.zeros((2, rows), np.int32)
    for block in blocks:
        starts = np.cumsum(block.counts) - block.counts
        own = _lengths(block.words, starts, block.counts, beginnings)
        head[block.rows] = own
        left = block.counts - own
        last = len(block.words) - (starts + block.counts)
        tail[block.rows] = _lengths(block.words[::-1], last, left, ends)
    return head, tail


def _distinct(found: Iterable[Hashes]) -> list[Hashes]:
    """The shortest first."""
    by_bytes: Mapping[bytes, Hashes] = {_bytes(words): words for words in found if len(words)}
    return [by_bytes[key] for key in sorted(by_bytes, key=lambda key: (len(key), key))]


def _lengths(words: Hashes, starts: Ints, counts: Ints, beginnings: list[Hashes]) -> Counts:
    """For each text, which begins at its start, the length of its longest known beginning."""
    lengths = np.zeros(len(starts), np.int32)
    for beginning in beginnings:
        size = len(beginning)
        maybe = np.flatnonzero(counts > size)
        maybe = maybe[words[starts[maybe]] == beginning[0]]
        there = words[spread(starts[maybe], np.full(len(maybe), size))].reshape(-1, size)
        same: Flags = (there == beginning).all(axis=1)
        lengths[maybe[same]] = size
    return lengths
