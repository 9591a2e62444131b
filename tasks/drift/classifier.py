"""Linear classifiers by ridge regression, out of fold.

Regression on 0 and 1 in closed form (Hastie, Tibshirani, Friedman: The Elements of Statistical
Learning, 4.2) has the same decision as Fisher's discriminant, and a merit of its own: labels are the
right-hand side of the equations.  So all permutations of a permutation test are fitted exactly with
one factorisation a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]

FOLDS = 5
RIDGE = 1.0
"""Added to the diagonal, where rows have length 1."""
AT_ONCE = 128
"""Permutations that are scored at once."""
DUAL = 1
"""Rows over features up to which there is less to do with the Gram matrix of the rows."""

_Fits = Callable[["Floats"], Iterator["Floats"]]


def folds(unit: Ints, generator: np.random.Generator) -> Ints:
    """A fold for each row; a unit is in one."""
    names, of_row = np.unique(unit, return_inverse=True)
    return generator.permutation(np.arange(len(names)) % FOLDS)[of_row]


class OutOfFold:
    """Fits for each fold on the rows of the others: through the Gram matrix of the features, or where
    rows are fewer through that of the rows, which gives the same numbers."""

    def __init__(self, features: Any, fold: Ints, learned: Flags) -> None:
        """
        Args:
            features: rows x features, sparse.
            learned: rows that are fitted on; the others are only scored.
        """
        self.rows = [np.flatnonzero(fold == number) for number in range(FOLDS)]
        if learned.sum() <= DUAL * features.shape[1]:
            self._fits = self._by_rows(features, learned)
        else:
            self._fits = self._by_features(features, learned)

    def scores(self, targets: Floats) -> Iterator[tuple[Ints, Floats]]:
        """The rows of each fold, and what was predicted of them.

        Args:
            targets: rows x targets; those of rows that are not fitted on are not read.
        """
        yield from zip(self.rows, self._fits(targets), strict=True)

    def _by_rows(self, features: Any, learned: Flags) -> _Fits:
        from scipy.linalg import cho_factor, cho_solve

        kernel = (features @ features.T).toarray()
        fitted = []
        for rows in self.rows:
            others = learned.copy()
            others[rows] = False
            chosen = np.flatnonzero(others)
            gram = kernel[np.ix_(chosen, chosen)]
            gram[np.diag_indices_from(gram)] += np.float32(RIDGE)
            factor = cho_factor(gram, overwrite_a=True, check_finite=False)
            hat = cho_solve(factor, kernel[np.ix_(chosen, rows)], check_finite=False).T
            fitted.append((np.ascontiguousarray(hat), chosen))
        return lambda targets: (hat @ targets[chosen] for hat, chosen in fitted)

    def _by_features(self, features: Any, learned: Flags) -> _Fits:
        from scipy.linalg import cho_factor, cho_solve

        parts = [features[rows] for rows in self.rows]
        fitted = [(features[rows[learned[rows]]], rows[learned[rows]]) for rows in self.rows]
        grams = []
        for part, _ in fitted:
            dense = part.toarray()
            grams.append(dense.T @ dense)
        total = sum(grams)
        factors = []
        for gram in grams:
            left = total - gram
            left[np.diag_indices_from(left)] += np.float32(RIDGE)
            factors.append(cho_factor(left, overwrite_a=True, check_finite=False))

        def predict(targets: Floats) -> Iterator[Floats]:
            sides = [part.T @ targets[rows] for part, rows in fitted]
            whole = sum(sides)
            for part, factor, side in zip(parts, factors, sides, strict=True):
                yield part @ cho_solve(factor, whole - side, check_finite=False)

        return predict


@dataclass(frozen=True)
class TwoSamples:
    """How well a classifier tells the sides apart."""

    auc: float
    p_value: float
    scores: Floats
    """Of each row, out of fold: the higher, the more it looks like an arrival."""


def two_samples(
    features: Any, arrived: Flags, unit: Ints, permutations: int, generator: np.random.Generator
) -> TwoSamples:
    """The classifier two-sample test (Lopez-Paz and Oquab 2017): the area under the ROC curve of
    out-of-fold scores, and its p-value by permutation of whole units.

    What one side has of a unit is permuted as one.  The p-value is one-sided and exact: a multiple of
    1 / (permutations + 1).
    """
    order = generator.permutation(len(arrived))  # ties are broken by place
    features, arrived, unit = features[order], arrived[order], unit[order]
    _, block = np.unique(unit * 2 + arrived, return_inverse=True)
    first = np.zeros(block.max() + 1, np.bool_)
    first[block] = arrived
    fitted = OutOfFold(features, folds(unit, generator), np.ones(len(arrived), np.bool_))

    seen = np.zeros(len(arrived), np.float32)
    for rows, scores in fitted.scores(arrived[:, None].astype(np.float32)):
        seen[rows] = scores[:, 0]
    auc = float(
        _auc(arrived[:, None], lambda: ((rows, seen[rows, None]) for rows in fitted.rows))[0]
    )
    extreme = 1
    for begin in range(0, permutations, AT_ONCE):
        count = min(AT_ONCE, permutations - begin)
        drawn = np.stack([generator.permutation(first)[block] for _ in range(count)], axis=1)
        found = _auc(drawn, lambda drawn=drawn: fitted.scores(drawn.astype(np.float32)))  # type: ignore[misc]
        extreme += int((found >= auc - 1e-12).sum())
    back = np.empty_like(seen)
    back[order] = seen
    return TwoSamples(auc, extreme / (permutations + 1), back)


def _auc(labels: Flags, scores: Callable[[], Iterator[tuple[Ints, Floats]]]) -> NDArray[np.float64]:
    """Area under the ROC curve of each column: mean over the folds, by their pairs."""
    wins = np.zeros(labels.shape[1])
    pairs = np.zeros(labels.shape[1])
    for rows, scored in scores():
        given = np.take_along_axis(labels[rows], np.argsort(scored, axis=0), axis=0)
        ones = given.sum(axis=0, dtype=np.float64)
        ranks = np.arange(1, len(rows) + 1, dtype=np.float64) @ given
        wins += ranks - ones * (ones + 1) / 2
        pairs += ones * (len(rows) - ones)
    area = np.full(len(wins), 0.5)
    np.divide(wins, pairs, out=area, where=pairs > 0)
    return area


def predicted(features: Any, classes: Ints, fold: Ints, learned: Flags) -> tuple[Ints, Floats]:
    """The class that is predicted of each row by a classifier of the learned rows of other folds, and
    by how much its score is above that of the row's own class.

    Args:
        classes: of each row, from 0; -1 for one that no learned row has.
    """
    count = int(classes.max()) + 1
    targets = np.zeros((len(classes), count), np.float32)
    known = np.flatnonzero(classes >= 0)
    targets[known, classes[known]] = 1
    best = np.zeros(len(classes), np.int64)
    margin = np.zeros(len(classes), np.float32)
    for rows, scores in OutOfFold(features, fold, learned).scores(targets):
        best[rows] = scores.argmax(axis=1)
        own = np.where(classes[rows] >= 0, scores[np.arange(len(rows)), classes[rows]], 0)
        margin[rows] = scores.max(axis=1) - own
    return best, margin
