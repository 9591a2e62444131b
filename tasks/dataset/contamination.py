"""Whether training text holds what the model is tested on.

A training text is contaminated by a held-out one when it has at least a share of its runs of words
(Brown et al. 2020, GPT-3, appendix C; Chowdhery et al. 2022, PaLM, section 8). A held-out text of
fewer words than a run has cannot be judged so; the rule for near-duplicates covers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from tasks.dataset.ngrams import Block, Flags, Hashes, HashSet, Ints, mix, spread
from tasks.params import Decontamination

_RUNS_AT_ONCE = 4_000_000


class Overlap:
    """Held-out texts, indexed by their runs, and which training rows hold them.

    A text that has `needed` of a held-out text's n runs has one of any n - needed + 1 of them (the
    prefix filter of Chaudhuri, Ganti, Kaushik 2006). So the index has only the rarest that many of
    each, and what it proposes is counted exactly.
    """

    def __init__(self, blocks: Iterable[Block], settings: Decontamination) -> None:
        self._size = settings.ngram_words
        rows, runs, owners = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], []
        short, texts = [np.empty(0, np.int64)], 0
        for block in blocks:
            found, row = block.runs(self._size)
            judged = np.unique(row)
            short.append(np.delete(block.rows, judged))
            rows.append(block.rows[judged])
            runs.append(found)
            owners.append(np.searchsorted(judged, row) + texts)
            texts += len(judged)
        self.short = np.concatenate(short)
        """Rows that cannot be judged."""
        self._rows = np.concatenate(rows)
        run, owner = _distinct(
            np.concatenate(runs), np.concatenate([np.empty(0, np.int64), *owners])
        )
        run, owner = self._merge_equal(run, owner)
        self._set_needed(run, owner, settings.overlap)
        self._pairs = np.empty((2, 0), np.int64)

    def compare(self, blocks: Iterable[Block]) -> None:
        """Look for held-out texts in training rows."""
        found = [np.stack(self._held_by(block)) for block in blocks]
        self._pairs = np.concatenate([self._pairs, *found], axis=1)

    def held(self) -> tuple[Ints, Ints]:
        """The training rows that hold a held-out text, and the first row that has such a text."""
        rows, texts = self._pairs
        order = np.lexsort((self._first[texts], rows))
        rows, place = np.unique(rows[order], return_index=True)
        return rows, self._first[texts[order][place]]

    def shares(
        self, training: Flags, parts: Mapping[str, Flags]
    ) -> dict[str, dict[str, float | None]]:
        """For each part of the held-out rows, how many could be judged, and how many of these are
        held by one of the training rows; the share is None where none could be judged."""
        rows, texts = self._pairs
        bad = self._rows[np.isin(self._text, texts[training[rows]])]
        found: dict[str, dict[str, float | None]] = {}
        for name, part in parts.items():
            judged, held = int(part[self._rows].sum()), int(part[bad].sum())
            found[name] = {
                "rows": int(part.sum()),
                "judged": judged,
                "contaminated": held,
                "share": held / judged if judged else None,
            }
        return found

    def _merge_equal(self, run: Hashes, owner: Ints) -> tuple[Hashes, Ints]:
        """Texts with the same runs are one: benchmarks ask the same many times."""
        sums = np.zeros(len(self._rows), np.uint64)
        np.add.at(sums, owner, mix(run))
        _, first, self._text = np.unique(sums, return_index=True, return_inverse=True)
        self._first = self._rows[first]
        self._texts = len(first)
        is_first = np.zeros(len(self._rows), np.bool_)
        is_first[first] = True
        kept = is_first[owner]
        return run[kept], self._text[owner[kept]]

    def _set_needed(self, run: Hashes, owner: Ints, overlap: float) -> None:
        order = np.lexsort((run, owner))
        self._run, owner = run[order], owner[order]
        self._counts = np.bincount(owner, minlength=self._texts)
        self._starts = np.cumsum(self._counts) - self._counts
        self._needed = np.maximum(1, np.ceil(overlap * self._counts - 1e-9)).astype(np.int64)
        _, number, times = np.unique(self._run, return_inverse=True, return_counts=True)
        rarest = np.lexsort((self._run, times[number], owner))
        place = np.arange(len(owner)) - self._starts[owner]
        prefix = rarest[place < (self._counts - self._needed + 1)[owner]]
        by_run = prefix[np.argsort(self._run[prefix], kind="stable")]
        self._index = HashSet(self._run[by_run])
        self._holders = owner[by_run]
        bounds = np.searchsorted(self._run[by_run], self._index.hashes)
        self._holder_starts = bounds
        self._holder_counts = np.diff(bounds, append=len(by_run))

    def _held_by(self, block: Block) -> tuple[Ints, Ints]:
        """Pairs of a row of the block and a held-out text that it holds."""
        run, row = block.runs(self._size)
        place, number = self._index.find(run)
        starts, counts = self._holder_starts[number], self._holder_counts[number]
        texts = self._holders[spread(starts, counts)]
        rows = np.repeat(row[place], counts)
        pairs = np.unique(rows * max(1, self._texts) + texts)
        rows, texts = pairs // max(1, self._texts), pairs % max(1, self._texts)
        if not len(pairs):
            return rows, texts
        there = np.unique(run ^ mix(row.astype(np.uint64)))
        holds = np.concatenate(
            [self._holds(there, rows[part], texts[part]) for part in self._parts(texts)]
        )
        return block.rows[rows[holds]], texts[holds]

    def _parts(self, texts: Ints) -> list[slice]:
        """Pieces of the pairs whose runs fit into memory."""
        total = np.cumsum(self._counts[texts])
        cuts = np.searchsorted(total, np.arange(_RUNS_AT_ONCE, int(total[-1]), _RUNS_AT_ONCE))
        bounds = np.unique([0, *cuts.tolist(), len(texts)]).tolist()
        return [slice(begin, end) for begin, end in pairwise(bounds)]

    def _holds(self, there: Hashes, rows: Ints, texts: Ints) -> Flags:
        counts = self._counts[texts]
        run = self._run[spread(self._starts[texts], counts)]
        asked = run ^ mix(np.repeat(rows, counts).astype(np.uint64))
        place = np.minimum(np.searchsorted(there, asked), len(there) - 1)
        found = np.add.reduceat(
            (there[place] == asked).astype(np.int64), np.cumsum(counts) - counts
        )
        enough: Flags = found >= self._needed[texts]
        return enough


def _distinct(run: Hashes, owner: Ints) -> tuple[Hashes, Ints]:
    order = np.lexsort((run, owner))
    run, owner = run[order], owner[order]
    new = np.ones(len(run), np.bool_)
    new[1:] = (run[1:] != run[:-1]) | (owner[1:] != owner[:-1])
    return run[new], owner[new]
