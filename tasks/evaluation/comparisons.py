"""Two candidates on the same rows: by how much they differ, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from tasks.evaluation import statistics
from tasks.evaluation.statistics import Estimate

Says = Literal["better", "worse", "inside the noise"]
NOISE: Says = "inside the noise"
SIMPLER = ("base", "base_few_shot", "base_retrieval", "classical")
"""Candidates that need no training of a model, in the order in which they are reported."""
SPLIT = "test"
"""On which methods are compared."""


class Comparison(TypedDict):
    left: str
    right: str
    metric: str
    split: str
    rows: int
    left_value: float
    right_value: float
    difference: Estimate
    """Left less right."""
    left_only: int | None
    """Rows that only the left gets right; None where answers are not right or wrong."""
    right_only: int | None
    p_value: float | None
    """Of McNemar's test; None where answers are not right or wrong."""
    resolvable: float | None
    """The smallest difference that so many rows resolve; None where they resolve none."""
    says: Says


def compare(
    left: str,
    right: str,
    metric: str,
    split: str,
    left_outcomes: Sequence[float],
    right_outcomes: Sequence[float],
    confidence: float,
    seed: int,
) -> Comparison | None:
    """Compare two candidates row by row, by a metric of which more is better.

    Args:
        left_outcomes: of each row, as `metrics.outcomes` gives them; NaN where the metric does not
            speak of a row.
        right_outcomes: of the same rows.

    Returns:
        None where there is no row to compare on.

    Raises:
        ValueError: when the two are not of the same rows.
    """
    pairs = [
        (float(a), float(b))
        for a, b in zip(left_outcomes, right_outcomes, strict=True)
        if not math.isnan(a) and not math.isnan(b)
    ]
    if not pairs:
        return None
    ours, others = [a for a, _ in pairs], [b for _, b in pairs]
    difference = statistics.paired_difference(ours, others, confidence, seed)
    left_only = right_only = p_value = None
    if right_or_wrong(ours) and right_or_wrong(others):
        left_only, right_only, p_value = statistics.mcnemar(
            [a == 1 for a in ours], [b == 1 for b in others]
        )
    return {
        "left": left,
        "right": right,
        "metric": metric,
        "split": split,
        "rows": len(pairs),
        "left_value": _mean(ours),
        "right_value": _mean(others),
        "difference": difference,
        "left_only": left_only,
        "right_only": right_only,
        "p_value": p_value,
        "resolvable": statistics.smallest_resolvable(
            statistics.differences(ours, others), confidence
        ),
        "says": says(difference, p_value, confidence),
    }


def right_or_wrong(outcomes: Sequence[float]) -> bool:
    """Whether outcomes are those of a test that a row passes or not."""
    return all(outcome in (0.0, 1.0) for outcome in outcomes)


def says(difference: Estimate, p_value: float | None, confidence: float) -> Says:
    """A difference counts where its interval leaves out 0, and McNemar's test, where it fits, calls
    it more than luck too: of few rows that differ, one of the two may see more than there is."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or (p_value is not None and p_value > round(1 - confidence, 9)):
        return NOISE
    if low > 0:
        return "better"
    return "worse" if high < 0 else NOISE


def best_simpler(candidates: Mapping[str, Any], metric: str) -> str | None:
    """The candidate without training that does best on the test; of equals, the simpler one.

    Args:
        candidates: metrics by candidate and split, as in evaluate.metrics.json.
    """
    measured = simpler_values(candidates, metric)
    return max(measured, key=lambda name: measured[name]) if measured else None


def simpler_values(candidates: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What the candidates without training reach on the test, of those that it is measured of."""
    values = {
        name: candidates[name].get(SPLIT, {}).get(metric, {}).get("value")
        for name in SIMPLER
        if name in candidates
    }
    return {name: value for name, value in values.items() if value is not None}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), statistics.DIGITS)
