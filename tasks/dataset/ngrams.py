"""Runs of words as 64-bit hashes, for millions of texts at a time.

A word is what `duplicates.words` says it is. A run's hash is a polynomial of its words' hashes modulo
2^64 (Karp and Rabin 1987), mixed, so that whole arrays are hashed at once; it is the same on every
machine. Two different runs share a hash with a probability of about 1e-19.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tasks.dataset import duplicates

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

BARRIER = np.uint64(0x9E6C63D0876A9A47)
"""Stands between the parts of a row: no run of a single text holds it."""

WORDS_AT_ONCE = 1_000_000
_RUN_BASE = 0xD1342543DE82EF95
_BITS = 64


def mix(values: Hashes) -> Hashes:
    """Spread each value over all 64 bits (splitmix64; Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def words(texts: Sequence[str]) -> tuple[Hashes, Ints]:
    """Hashes of the words of all texts, one after the other, and how many words each text has."""
    hashes, counts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for block in duplicates.blocks(texts):
        found, number = duplicates.word_hashes(block)
        hashes.append(found)
        counts.append(number)
    return np.concatenate(hashes), np.concatenate(counts)


@dataclass(frozen=True)
class Block:
    """The words of some rows."""

    rows: Ints
    """The rows' numbers."""
    words: Hashes
    counts: Ints
    """Words of each row."""

    def runs(self, size: int) -> tuple[Hashes, Ints]:
        """Hashes of every run of `size` words within a row, and the place of its row in `rows`."""
        total = len(self.words) - size + 1
        if total <= 0:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        row = np.repeat(np.arange(len(self.counts)), self.counts)[:total]
        whole = np.flatnonzero(np.arange(size, total + size) <= np.cumsum(self.counts)[row])
        sums = np.zeros(total, np.uint64)
        for place in range(size):  # Horner's rule
            sums = sums * np.uint64(_RUN_BASE) + self.words[place : place + total]
        return mix(sums[whole]), row[whole]


class WordStore:
    """The words of every row, in a file: 8 bytes a word, about as much as the text itself.

    A row's words are those of what is asked, and behind a barrier those of each answer.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._counts: list[Ints] = []
        self._asked: list[Ints] = []
        self._left_out: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None

    def append(self, words: Hashes, counts: Ints, asked: Ints) -> None:
        """Add rows: all their words, how many each has, and how many of these are asked."""
        self._file.write(words.tobytes())
        self._counts.append(counts)
        self._asked.append(asked)

    def leave_out(self, head: NDArray[np.int32], tail: NDArray[np.int32]) -> None:
        """From now on do without the first and last words of what is asked, as many as is said for
        each row."""
        self._left_out = head, tail

    def left_out(self, row: int) -> tuple[int, int]:
        """How many words at the beginning and at the end of what a row asks are left out."""
        if self._left_out is None:
            return 0, 0
        head, tail = self._left_out
        return int(head[row]), int(tail[row])

    def asked(self, samples: Iterable[Ints]) -> Iterator[list[Hashes]]:
        """What is asked in some rows, a sample at a time."""
        self._file.flush()
        counts, asked = _joined(self._counts), _joined(self._asked)
        starts = np.cumsum(counts) - counts
        for rows in samples:
            places = zip(starts[rows].tolist(), asked[rows].tolist(), strict=True)
            yield [self._read(start, size) for start, size in places]

    def blocks(self, rows: Flags, *, asked: bool) -> Iterator[Block]:
        """The words of the flagged rows, in order: only what is asked, or all."""
        self._file.flush()
        counts, asks = _joined(self._counts), _joined(self._asked)
        wanted = np.where(rows, asks if asked else counts, 0)
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(counts):
            before = ends[begin] - counts[begin]
            stop = max(begin + 1, int(np.searchsorted(ends, before + WORDS_AT_ONCE, "right")))
            part = slice(begin, stop)
            chosen = np.flatnonzero(rows[part])
            if len(chosen):
                size = int(ends[stop - 1] - before)
                found = self._read(int(before), size)
                offset = np.arange(size) - np.repeat(
                    ends[part] - counts[part] - before, counts[part]
                )
                kept = offset < np.repeat(wanted[part], counts[part])
                number = wanted[part][chosen]
                if self._left_out is not None:
                    head, tail = (side[part] for side in self._left_out)
                    kept &= offset >= np.repeat(head, counts[part])
                    ended = np.repeat(asks[part] - tail, counts[part])
                    kept &= (offset < ended) | (offset >= np.repeat(asks[part], counts[part]))
                    number = number - head[chosen] - tail[chosen]
                yield Block(chosen + begin, found[kept], number)
            begin = stop

    def _read(self, start: int, size: int) -> Hashes:
        self._file.seek(start * 8)
        return np.fromfile(self._file, np.uint64, size)


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])


class HashSet:
    """Hashes that others are looked up in: a table of bits answers most questions at once."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = np.unique(hashes)
        bits = min(26, max(10, (16 * len(self.hashes)).bit_length()))
        self._shift = np.uint64(_BITS - bits)
        self._table = np.zeros(1 << bits, np.bool_)
        self._table[self.hashes >> self._shift] = True

    def find(self, hashes: Hashes) -> tuple[Ints, Ints]:
        """The places of the hashes that are in the set, and their numbers in it."""
        places = np.flatnonzero(self._table[hashes >> self._shift])
        numbers = np.searchsorted(self.hashes, hashes[places])
        numbers[numbers == len(self.hashes)] = 0
        if not len(self.hashes):
            return places[:0], numbers[:0]
        there = self.hashes[numbers] == hashes[places]
        return places[there], numbers[there]


def spread(starts: Ints, counts: Ints) -> Ints:
    """start, start + 1, ... for each of the ranges, one range after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
