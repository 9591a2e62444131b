"""Whether training text holds what the model is tested on, and how far a test is from training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tasks.dataset.duplicates import words

OVERLAP_WORDS = 8
"""Length of the runs of words that are compared (Chowdhery et al. 2022, PaLM, section 8)."""

COMPARED = 20_000
"""Training texts that a test text is compared with at most; of more, as many are taken evenly."""

_SCORES_AT_ONCE = 5_000_000


class Overlap:
    """Finds held-out texts inside longer ones.

    A text holds a held-out one when it has at least `threshold` of its runs of eight words;
    held-out texts of fewer words are too common to be looked for.
    """

    def __init__(self, held_out: Iterable[tuple[str, str]], threshold: float) -> None:
        """`held_out`: names and texts."""
        self._names: list[str] = []
        self._needed: list[float] = []
        self._holders: defaultdict[int, list[int]] = defaultdict(list)
        for name, text in held_out:
            runs = _runs(text)
            if not runs:
                continue
            for run in runs:
                self._holders[run].append(len(self._names))
            self._names.append(name)
            self._needed.append(threshold * len(runs))

    def find(self, text: str) -> str | None:
        """The name of a held-out text that this text holds, the first of them."""
        if not self._names:
            return None
        shared = Counter(holder for run in _runs(text) for holder in self._holders.get(run, ()))
        held = [holder for holder, count in shared.items() if count >= self._needed[holder]]
        return self._names[min(held)] if held else None


def _runs(text: str) -> set[int]:
    """Hashes of the runs; Python's own, which serves within one process."""
    found = words(text)
    return {
        hash(tuple(found[start : start + OVERLAP_WORDS]))
        for start in range(len(found) - OVERLAP_WORDS + 1)
    }


def nearest(texts: Sequence[str], train: Sequence[str]) -> list[float]:
    """For each text the highest similarity to a training text, 0 to 1.

    Cosine of TF-IDF vectors over words and pairs of words, rounded to six places so that the last
    bits of a logarithm, which differ between processors, decide nothing.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    train = train[:: -(-len(train) // COMPARED)] if train else train
    vectorizer = TfidfVectorizer(analyzer=_terms)
    try:
        known = vectorizer.fit_transform(train).T.tocsr()
    except ValueError:  # no training text has a word
        return [0.0] * len(texts)
    block = max(1, _SCORES_AT_ONCE // len(train))
    found: list[float] = []
    for start in range(0, len(texts), block):
        scores = vectorizer.transform(texts[start : start + block]) @ known
        found += np.round(scores.max(axis=1).toarray().ravel(), 6).tolist()
    return found


def _terms(text: str) -> list[str]:
    found = words(text)
    return found + [f"{left} {right}" for left, right in pairwise(found)]
