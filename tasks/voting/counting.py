"""What votes add up to: a win rate with its interval, and how far those who voted agree.

A score is the final candidate's share of a comparison: 1 won, 0 lost, 0.5 a tie.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

from tasks.evaluation.statistics import DIGITS, Estimate

Votes = Mapping[str, Mapping[str, float]]
"""Scores by person and row."""


@dataclass(frozen=True)
class Agreement:
    """How often two say the same of a row, and how much of that is more than luck."""

    rows: int
    """That both have judged."""
    share: float | None
    kappa: float | None
    """1 agree always, 0 as often as by luck; None where luck alone would agree always."""

    def __str__(self) -> str:
        if self.share is None:
            return "no row in common"
        rows = "1 comparison" if self.rows == 1 else f"{self.rows} comparisons"
        kappa = "undefined" if self.kappa is None else f"{self.kappa:.2f}"
        return f"{self.share:.0%} of {rows}, kappa {kappa}"


def win_rate(scores: Sequence[float], confidence: float) -> Estimate:
    """The mean score, with Wilson's score interval (Wilson 1927).

    Scores between 0 and 1 vary less than wins and losses with the same mean, so ties make the
    interval wider than it need be, and never too narrow.  Unlike a bootstrap, it keeps a width where
    all comparisons were won.
    """
    if not scores:
        return {"value": None, "low": None, "high": None}
    count, mean = len(scores), sum(scores) / len(scores)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = mean + z * z / (2 * count)
    reach = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return {
        "value": round(mean, DIGITS),
        "low": round(max(0.0, (middle - reach) / whole), DIGITS),
        "high": round(min(1.0, (middle + reach) / whole), DIGITS),
    }


def by_row(votes: Votes) -> dict[str, float]:
    """The mean score of each row: what several people say of one row is no independent news."""
    found: dict[str, list[float]] = defaultdict(list)
    for scores in votes.values():
        for row, score in scores.items():
            found[row].append(score)
    return {row: sum(scores) / len(scores) for row, scores in found.items()}


@dataclass(frozen=True)
class Tally:
    """What people's votes add up to."""

    people: int
    votes: int
    rows: int
    """That were voted on."""
    won: int
    lost: int
    tied: int
    """Votes for the final candidate, for the other, for neither."""
    win_rate: Estimate
    """Over rows: what several people say of one row is no independent news."""
    agreement: Agreement

    def lines(self, final: str, against: str) -> list[str]:
        """For a console."""
        people = "1 person" if self.people == 1 else f"{self.people} people"
        told = [
            f"  {people}, {self.votes} votes on {self.rows} rows: {final} won {self.won}, lost "
            f"{self.lost}, tied {self.tied} against {against}",
            f"  win rate {shown(self.win_rate)}, ties counted half",
        ]
        if self.people > 1:
            told.append(f"  people agree on {self.agreement}")
        return told


def tally(votes: Votes, confidence: float) -> Tally:
    given = [score for scores in votes.values() for score in scores.values()]
    rows = by_row(votes)
    return Tally(
        people=len(votes),
        votes=len(given),
        rows=len(rows),
        won=given.count(1.0),
        lost=given.count(0.0),
        tied=given.count(0.5),
        win_rate=win_rate(list(rows.values()), confidence),
        agreement=among(votes),
    )


def shown(estimate: Estimate) -> str:
    """A number with its interval."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    return "none" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def majority(score: float) -> float:
    """A mean score as the one outcome that it speaks for."""
    return 0.5 if score == 0.5 else float(score > 0.5)


def between(left: Mapping[str, float], right: Mapping[str, float]) -> Agreement:
    """Agreement on the rows that both have judged, with Cohen's kappa (Cohen 1960)."""
    from sklearn.metrics import cohen_kappa_score

    rows = sorted(left.keys() & right.keys())
    if not rows:
        return Agreement(0, None, None)
    one, other = ([str(side[row]) for row in rows] for side in (left, right))
    share = sum(a == b for a, b in zip(one, other, strict=True)) / len(rows)
    # scikit-learn warns and answers NaN there
    kappa = None if len({*one, *other}) == 1 else round(cohen_kappa_score(one, other), DIGITS)
    return Agreement(len(rows), round(share, DIGITS), kappa)


def among(votes: Votes) -> Agreement:
    """Agreement of all people on the rows that several have judged, with Fleiss' kappa (Fleiss 1971,
    with a number of people that differs from row to row); `rows` counts pairs of votes."""
    scores: dict[str, list[float]] = defaultdict(list)
    for given in votes.values():
        for row, score in given.items():
            scores[row].append(score)
    several = [found for found in scores.values() if len(found) > 1]
    pairs = [a == b for found in several for a, b in combinations(found, 2)]
    if not pairs:
        return Agreement(0, None, None)
    share = sum(pairs) / len(pairs)
    luck = _by_luck(score for found in several for score in found)
    kappa = None if luck == 1 else round((share - luck) / (1 - luck), DIGITS)
    return Agreement(len(pairs), round(share, DIGITS), kappa)


def _by_luck(scores: Iterable[float]) -> float:
    """How often two would agree who vote alike on the whole, and blindly."""
    counts = Counter(scores)
    return sum((count / counts.total()) ** 2 for count in counts.values())
