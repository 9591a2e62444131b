"""The tests of a drift check, and what drives them.

Three alarms share `drift.significance` evenly: the classifier of words, the family of descriptive
tests (Holm 1979), and the champion's quality.  So a check without drift gives a false alarm with a
probability of at most that, whatever the sources; the least effects make it rarer still.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.dataset import records
from tasks.drift import classifier, columns
from tasks.drift.columns import Columns, Side
from tasks.evaluation import statistics
from tasks.params import DRIFT_ALARMS, Drift, NearDuplicates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

BUCKETS = 1024
"""Into which words are hashed."""
LEAST_EXPECTED = 5
"""Rows of a class that chi-square expects; rarer classes are taken together (Cochran 1954)."""
KNOWN_ROWS = 2
"""Rows of other units in which training must have a word for it not to be rare."""
WORDS_SHOWN, CLASSES_SHOWN, ROWS_SHOWN = 16, 40, 5
BINS = 24
RARE = "(all rarer ones)"
DIGITS = 6


@dataclass(frozen=True)
class Outcome:
    """One test of a source; `before` and `now` are what it compares, as numbers that people read."""

    name: str
    measure: str
    """What the effect is."""
    p_value: float
    effect: float
    least: float
    """Effect from which on the test can fire."""
    before: float | None
    now: float | None
    rows_before: int
    rows_now: int
    """Independent units, or all rows where each row counts."""
    says: str
    """A sentence, for when it fires."""
    level: float = 0.0
    """Of `adjusted`, at which it can fire."""
    adjusted: float = 1.0
    """The p-value, corrected for the other tests of the check."""
    fires: bool = False


@dataclass(frozen=True)
class Comparison:
    """What came of one source."""

    like: str
    rows_before: int
    rows_now: int
    tests: list[Outcome]
    details: dict[str, Any]
    """For the report: words, classes, languages, distributions, rows to look at."""

    @property
    def reasons(self) -> list[str]:
        return [f"{self.like}: {test.says}" for test in self.tests if test.fires]

    def document(self) -> dict[str, Any]:
        return {
            "rows_before": self.rows_before,
            "rows_now": self.rows_now,
            "tests": {test.name: asdict(test) for test in self.tests},
            **self.details,
        }


def compare(
    sides: Mapping[str, tuple[Side, Side]], drift: Drift, near: NearDuplicates, seed: int
) -> list[Comparison]:
    """Compare the arrivals of each source with what the champion learned from it.

    Args:
        sides: what was learned from and what arrived, by the source that it is like.  A test is only
            made where both have `drift.min_rows`.
    """
    found = [
        _compare(like, before, after, drift, near, seed) for like, (before, after) in sides.items()
    ]
    return decide(found, drift)


def decide(found: Sequence[Comparison], drift: Drift) -> list[Comparison]:
    """Which tests fire, of all sources together."""
    share = drift.significance / DRIFT_ALARMS
    family = [test for one in found for test in one.tests if test.name != WORDS]
    adjusted = iter(statistics.holm([test.p_value for test in family]))
    sources = sum(any(test.name == WORDS for test in one.tests) for one in found)

    def decided(test: Outcome) -> Outcome:
        p_value = test.p_value * sources if test.name == WORDS else next(adjusted)
        p_value = min(1.0, p_value)
        fires = p_value <= share and test.effect >= test.least
        return replace(test, level=share, adjusted=p_value, fires=fires)

    return [replace(one, tests=[decided(test) for test in one.tests]) for one in found]


WORDS = "words"


def _compare(
    like: str, before: Side, after: Side, drift: Drift, near: NearDuplicates, seed: int
) -> Comparison:
    tests: list[Outcome] = []
    details: dict[str, Any] = {}
    enough = drift.min_rows
    if min(before.rows, after.rows) >= enough:
        tests.append(_rejected(before, after, drift.effects.rejected))
        details["rejected"] = {"before": dict(before.rejected), "now": dict(after.rejected)}
    if min(len(before.records), len(after.records)) >= enough:
        generator = np.random.default_rng(seed)
        built = columns.build(before, after, near, seed)
        told = _Told(built, drift, generator)
        copies = _near_duplicates(before, after, near, drift.effects.duplicates, seed)
        alone = min(len(told.before), len(told.now)) >= enough
        tests = [*(told.tests() if alone else ()), copies, *tests]
        details |= told.details
    return Comparison(like, before.rows, after.rows, tests, details)


class _Told:
    """The tests on the columns of one source, with what they have found on the way."""

    def __init__(self, built: Columns, drift: Drift, generator: np.random.Generator) -> None:
        self._built = built
        self._drift = drift
        self._generator = generator
        self.one = _one_a_unit(built, generator)
        """A row of each unit of each side."""
        self.before = self.one[~built.arrived[self.one]]
        self.now = self.one[built.arrived[self.one]]
        known = np.isin(built.unit[self.now], built.unit[self.before])
        self.details: dict[str, Any] = {
            "fields": {},
            "distributions": {},
            "look_at": [],
            "known_arrivals": round(float(known.mean()), DIGITS),
        }

    def tests(self) -> Iterator[Outcome]:
        """Every test that these rows allow."""
        effects, built = self._drift.effects, self._built
        yield self._words()
        yield self._distance(
            "prompt length", np.array(list(map(len, built.prompts))), effects.lengths, "characters"
        )
        if not built.fields and any(built.answers):
            yield self._distance(
                "answer length",
                np.array(list(map(len, built.answers))),
                effects.lengths,
                "characters",
            )
        yield self._distance("rare words", self._rare_words(), effects.rare_words, "share")
        for name, values in built.fields.items():
            yield self._classes(name, values, effects.classes)
        yield self._classes("language", built.languages, effects.languages)
        if built.fields:
            yield from self._answers()

    def _words(self) -> Outcome:
        built, drift = self._built, self._drift
        found = classifier.two_samples(
            built.words.hashed(BUCKETS),
            built.arrived,
            built.unit,
            drift.permutations,
            self._generator,
        )
        told = self._telling_words()
        self.details["words"] = told
        order = self.now[np.argsort(-found.scores[self.now], kind="stable")][:ROWS_SHOWN]
        self.details["look_at"] += [self._row(row, "most unlike training") for row in order]
        names = ", ".join(
            f"{one['word']!r} ({_percent(one['before'])} of the rows before, "
            f"{_percent(one['now'])} now)"
            for one in told[:3]
        )
        return Outcome(
            WORDS,
            "area under the ROC curve",
            found.p_value,
            round(found.auc, DIGITS),
            drift.effects.words,
            None,
            None,
            len(self.before),
            len(self.now),
            f"words tell arrivals from training rows (area under the ROC curve {found.auc:.2f}), "
            f"most of all {names}",
        )

    def _telling_words(self) -> list[dict[str, Any]]:
        """Words and classes whose share of rows changed most, by the z-score of the difference."""
        matrix = self._built.words.matrix()
        counts = [matrix[rows].sum(axis=0).A1 for rows in (self.before, self.now)]
        sizes = [len(self.before), len(self.now)]
        shares = [count / size for count, size in zip(counts, sizes, strict=True)]
        pooled = sum(counts) / sum(sizes)
        spread = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * sum(1 / size for size in sizes))
        score = np.abs(shares[1] - shares[0]) / spread
        best = np.argsort(-score, kind="stable")[:WORDS_SHOWN]
        return [
            {
                "word": self._built.words.vocabulary[at],
                "before": round(float(shares[0][at]), DIGITS),
                "now": round(float(shares[1][at]), DIGITS),
            }
            for at in best.tolist()
        ]

    def _distance(self, name: str, values: NDArray[Any], least: float, unit: str) -> Outcome:
        from scipy.stats import ks_2samp

        before, now = values[self.before], values[self.now]
        found = ks_2samp(before, now, method="asymp")
        self.details["distributions"][name] = {**_histogram(before, now), "unit": unit}
        middle = [float(np.median(side)) for side in (before, now)]
        if unit == "share":
            middle = [float(np.mean(side)) for side in (before, now)]
        shown = [_percent(one) if unit == "share" else f"{one:g}" for one in middle]
        of = "on average" if unit == "share" else f"{unit} in the middle"
        return Outcome(
            name,
            "Kolmogorov-Smirnov distance",
            float(found.pvalue),
            round(float(found.statistic), DIGITS),
            least,
            round(middle[0], DIGITS),
            round(middle[1], DIGITS),
            len(before),
            len(now),
            f"{name}: {shown[0]} {of} before, {shown[1]} now (distance {found.statistic:.2f})",
        )

    def _rare_words(self) -> NDArray[np.float64]:
        """Share of each prompt's words that training has in fewer than KNOWN_ROWS rows, those of the
        row's own fold left aside, so that training rows are as unknown as arrivals."""
        built = self._built
        matrix = built.prompt_words.matrix()
        fold = classifier.folds(built.unit, self._generator)
        lone = np.zeros(len(built), np.bool_)
        lone[self.before] = True
        counts = [
            matrix[lone & (fold == number)].sum(axis=0).A1 for number in range(classifier.FOLDS)
        ]
        total = sum(counts)
        share = np.zeros(len(built))
        for number, count in enumerate(counts):
            rows = np.flatnonzero(fold == number)
            unknown = ((total - count) < KNOWN_ROWS).astype(np.float32)
            sizes = matrix[rows].sum(axis=1).A1
            share[rows] = (matrix[rows] @ unknown) / np.maximum(sizes, 1)
        return share

    def _classes(self, name: str, values: Sequence[str], least: float) -> Outcome:
        before, now = (columns.counted(values, rows) for rows in (self.before, self.now))
        p_value, effect = chi_square(before, now)
        shares = [
            {key: count / sum(counts.values()) for key, count in counts.items()}
            for counts in (before, now)
        ]
        moved = sorted(
            {*before, *now},
            key=lambda key: (-abs(shares[1].get(key, 0) - shares[0].get(key, 0)), key),
        )
        told: list[dict[str, Any]] = [
            {
                "class": key,
                "before": round(shares[0].get(key, 0.0), DIGITS),
                "now": round(shares[1].get(key, 0.0), DIGITS),
                "new": key not in before,
                "vanished": key not in now,
            }
            for key in moved
        ]
        self.details["fields"][name] = told[:CLASSES_SHOWN]
        names = ", ".join(
            f"{one['class']!r} ({_percent(one['before'])} before, {_percent(one['now'])} now)"
            for one in told[:3]
        )
        return Outcome(
            name,
            "Cramér's V",
            p_value,
            effect,
            least,
            None,
            None,
            len(self.before),
            len(self.now),
            f"the mix of {name} changed (Cramér's V {effect:.2f}), most of all {names}",
        )

    def _answers(self) -> Iterator[Outcome]:
        """Whether a classifier that learned the training rows' answers from their prompts is right
        as often on arrivals: their answers can follow other rules with the same mix of classes."""
        built = self._built
        features = built.prompt_words.hashed(BUCKETS)
        fold = classifier.folds(built.unit, self._generator)
        for name, values in built.fields.items():
            labels = sorted(columns.counted(values, self.before))
            known = {value: number for number, value in enumerate(labels)}
            if len(known) < 2:
                continue
            classes = np.array([known.get(value, -1) for value in values])
            best, margin = classifier.predicted(features, classes, fold, ~built.arrived)
            right = best == classes
            shares = [float(right[rows].mean()) for rows in (self.before, self.now)]
            hits = [int(right[rows].sum()) for rows in (self.before, self.now)]
            p_value = _two_shares(hits[0], len(self.before), hits[1], len(self.now))
            wrong = self.now[~right[self.now]]
            order = wrong[np.argsort(-margin[wrong], kind="stable")][:ROWS_SHOWN]
            self.details["look_at"] += [
                self._row(row, f"{name}: training rows like this are {labels[best[row]]!r}")
                for row in order
            ]
            turns = Counter((labels[best[row]], values[row]) for row in wrong.tolist())
            turned = "".join(
                f", most of all {left!r} that is now {right!r}"
                for (left, right), _ in turns.most_common(1)
            )
            yield Outcome(
                f"{name} given the prompt",
                "fall of the share that follows",
                p_value,
                round(shares[0] - shares[1], DIGITS),
                self._drift.effects.answers,
                round(shares[0], DIGITS),
                round(shares[1], DIGITS),
                len(self.before),
                len(self.now),
                f"{name} follows from the prompt as in the training rows in {_percent(shares[1])} of "
                f"the arrivals, where it does in {_percent(shares[0])} of the training rows{turned}",
            )

    def _row(self, row: int, why: str) -> dict[str, str]:
        record = self._built.records[row]
        return {
            "why": why,
            "source": record["source"],
            "id": record["id"],
            "prompt": self._built.prompts[row],
            "answer": self._built.answers[row],
        }


def _near_duplicates(
    before: Side, after: Side, near: NearDuplicates, least: float, seed: int
) -> Outcome:
    """Of equally many rows of each side, and of all; the smaller difference counts.

    More rows have more near-duplicates by chance, which speaks against all of them.  A row that is sent
    twice comes beside its copy, and has lost it where few rows are drawn, which speaks against these.
    """
    sides = [
        side.records if side.with_copies is None else side.with_copies for side in (before, after)
    ]
    size = min(map(len, sides))
    drawn = [_repeats(random.Random(seed).sample(list(side), size), near, seed) for side in sides]
    whole = [
        found if len(side) == size else _repeats(side, near, seed)
        for side, found in zip(sides, drawn, strict=True)
    ]
    one, other = min(drawn, whole, key=lambda pair: abs(pair[1].share - pair[0].share))
    return Outcome(
        "near-duplicates",
        "difference of shares",
        _two_shares(one.repeated, one.clusters, other.repeated, other.clusters),
        round(abs(other.share - one.share), DIGITS),
        least,
        round(one.share, DIGITS),
        round(other.share, DIGITS),
        one.clusters,
        other.clusters,
        f"{_percent(other.share)} of the arrivals have a near-duplicate among them, "
        f"{_percent(one.share)} of the training source's rows",
    )


class _Repeats(NamedTuple):
    """How many clusters rows make, how many of these hold several, and the share of rows in these."""

    clusters: int
    repeated: int
    share: float


def _repeats(rows: Sequence[Mapping[str, Any]], near: NearDuplicates, seed: int) -> _Repeats:
    names = columns.clusters([records.user_text(row) for row in rows], near, seed)
    _, counts = np.unique(names, return_counts=True)
    several = counts[counts > 1]
    return _Repeats(len(counts), len(several), float(several.sum() / len(rows)))


def _rejected(before: Side, after: Side, least: float) -> Outcome:
    counts = [sum(side.rejected.values()) for side in (before, after)]
    shares = [count / side.rows for count, side in zip(counts, (before, after), strict=True)]
    reasons = Counter(after.rejected).most_common(3)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons) or "none"
    return Outcome(
        "rejected rows",
        "difference of shares",
        _two_shares(counts[0], before.rows, counts[1], after.rows),
        round(abs(shares[1] - shares[0]), DIGITS),
        least,
        round(shares[0], DIGITS),
        round(shares[1], DIGITS),
        before.rows,
        after.rows,
        f"{_percent(shares[1])} of the rows that arrived are rejected ({told}), "
        f"{_percent(shares[0])} of the training source's",
    )


def chi_square(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[float, float]:
    """The p-value of a chi-square test on classes, and Cramér's V.

    V is that of sides of equal size with these shares: of unequal ones it would fall with their
    ratio, whatever the shares do.
    """
    from scipy.stats import chi2_contingency

    names = sorted({*before, *now})
    table = np.array([[side.get(name, 0) for name in names] for side in (before, now)], float)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    common = expected.min(axis=0) >= LEAST_EXPECTED
    rare = table[:, ~common].sum(axis=1, keepdims=True)
    table = np.hstack([table[:, common], rare]) if rare.sum() else table
    if table.shape[1] < 2:
        return 1.0, 0.0
    shares = table / table.sum(axis=1, keepdims=True)
    effect = math.sqrt(float(((shares[0] - shares[1]) ** 2 / shares.sum(axis=0)).sum()) / 2)
    return float(chi2_contingency(table, correction=False).pvalue), round(effect, DIGITS)


def _two_shares(hits_before: int, before: int, hits_now: int, now: int) -> float:
    """The exact two-sided p-value of two shares (Fisher 1935)."""
    from scipy.stats import fisher_exact

    table = [[hits_before, before - hits_before], [hits_now, now - hits_now]]
    return float(fisher_exact(table).pvalue)


def _one_a_unit(built: Columns, generator: np.random.Generator) -> Ints:
    """A row of each unit on each side, drawn."""
    order = generator.permutation(len(built))
    _, first = np.unique(built.unit[order] * 2 + built.arrived[order], return_index=True)
    return np.sort(order[first])


def _histogram(before: NDArray[Any], now: NDArray[Any]) -> dict[str, list[float]]:
    """Shares of both sides in BINS equal bins, but for the last percent, which the last bin holds."""
    both = np.concatenate([before, now]).astype(float)
    low, high = float(both.min()), float(np.quantile(both, 0.99))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = [
        np.histogram(np.minimum(side, edges[-1]), edges)[0] / max(1, len(side))
        for side in (before, now)
    ]
    return {
        "edges": [round(edge, DIGITS) for edge in edges.tolist()],
        "before": [round(share, DIGITS) for share in shares[0].tolist()],
        "now": [round(share, DIGITS) for share in shares[1].tolist()],
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
