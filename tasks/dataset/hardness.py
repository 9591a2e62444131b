"""The hard test: the test rows that are far from training, have a rare answer, and are long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.dataset.columns import Rows
from tasks.dataset.ngrams import Block, Flags, Hashes, HashSet, Ints
from tasks.dataset.splits import Names

Floats = NDArray[np.float64]

PAIR = 2
"""Words of a run whose novelty is counted."""


class Novelty:
    """Which pairs of words of the test rows no training row has."""

    def __init__(self, test: Iterable[Block]) -> None:
        found = [(*block.runs(PAIR), len(block.rows)) for block in test]
        self._pairs = [pairs for pairs, _, _ in found]
        self._rows = [rows for _, rows, _ in found]
        self._sizes = [size for _, _, size in found]
        self._known = HashSet(np.concatenate([np.empty(0, np.uint64), *self._pairs]))
        self._seen = np.zeros(len(self._known.hashes), np.bool_)

    def train(self, blocks: Iterable[Block]) -> None:
        """Read what training rows ask."""
        for block in blocks:
            pairs, _ = block.runs(PAIR)
            _, numbers = self._known.find(pairs)
            self._seen[numbers] = True

    def shares(self) -> Floats:
        """For each test row the share of its pairs that are new, 0 to 1; 0 for one without pairs."""
        found = [np.empty(0)]
        for pairs, rows, size in zip(self._pairs, self._rows, self._sizes, strict=True):
            new = ~self._seen[np.searchsorted(self._known.hashes, pairs)]
            total = np.bincount(rows, minlength=size)
            found.append(np.bincount(rows[new], minlength=size) / np.maximum(1, total))
        return np.concatenate(found)


def rarity(test: Hashes, train: Hashes) -> Floats:
    """For each test answer the share of training chats that have another one, 0 to 1."""
    classes, counts = np.unique(train, return_counts=True)
    if not len(classes):
        return np.ones(len(test))
    place = np.minimum(np.searchsorted(classes, test), len(classes) - 1)
    same = np.where(classes[place] == test, counts[place], 0)
    return 1 - same / len(train)


@dataclass(frozen=True)
class Measures:
    """What makes test rows hard. `rows`: their numbers, ascending; `values`: an element for each."""

    rows: Ints
    values: Mapping[str, Floats]
    size: int
    """Of all rows."""

    def hardest(self, share: float, names: Names) -> Flags:
        """The share of the rows, one at least, that rank highest by the mean of their ranks.

        Equal values share the mean of their ranks; equal sums are settled by source and id.
        """
        found = np.zeros(self.size, np.bool_)
        if not len(self.rows):
            return found
        score = sum((_ranks(values) for values in self.values.values()), np.zeros(len(self.rows)))
        count = max(1, round(share * len(score)))
        last = np.sort(score)[-count]
        found[self.rows[score > last]] = True
        tied = names(self.rows[score == last].tolist())
        chosen = sorted(tied, key=tied.__getitem__)[: count - int(found.sum())]
        found[chosen] = True
        return found

    def means(self, part: Flags) -> dict[str, float | None]:
        """The mean of each measure over a part of the rows; None where there is none."""
        chosen = part[self.rows]
        return {
            name: float(values[chosen].mean()) if chosen.any() else None
            for name, values in self.values.items()
        }


def measure(rows: Rows, parts: Mapping[str, Flags]) -> Measures:
    """Measure the test rows against the training rows."""
    test, labels = np.flatnonzero(parts["test"]), rows.columns.label
    novelty = Novelty(rows.words.blocks(parts["test"], asked=True))
    novelty.train(rows.words.blocks(parts["train"] | parts["preferences"], asked=True))
    values = {
        "novelty": novelty.shares(),
        "rarity": rarity(labels[test], labels[parts["train"]]),
        "tokens": rows.columns.tokens[test, 0].astype(np.float64),
    }
    return Measures(test, values, len(labels))


def _ranks(values: Floats) -> Floats:
    """1 for the least value; halves are exact, so sums decide the same on every machine."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[number]
    return ranks
