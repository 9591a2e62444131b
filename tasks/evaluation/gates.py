"""The verdict: the final candidate's numbers against the gates of params.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypedDict

from tasks.evaluation import contamination
from tasks.evaluation.metrics import LOWER_IS_BETTER
from tasks.evaluation.statistics import Estimate


class Gate(TypedDict):
    metric: str
    split: str
    value: float | None
    limit: float
    passed: bool
    why: str


class Verdict(TypedDict):
    candidate: str
    verdict: Literal["pass", "fail"]
    contaminated_share: Estimate
    """Of the split that was judged on: how far the verdict is to be believed."""
    gates: list[Gate]


def judge(
    candidate: str, split: str, metrics: Mapping[str, Estimate], limits: Mapping[str, float]
) -> Verdict:
    """Hold a candidate's metrics on a split against limits, by metric.

    All must hold.  A metric that was not measured, or is not a number, fails its gate: a gate that
    cannot be checked must not let anything pass.
    """
    gates = [_gate(metric, split, metrics, limit) for metric, limit in limits.items()]
    passed = all(gate["passed"] for gate in gates)
    return {
        "candidate": candidate,
        "verdict": "pass" if passed else "fail",
        "contaminated_share": metrics.get(contamination.METRIC, contamination.NOT_JUDGED),
        "gates": gates,
    }


def _gate(metric: str, split: str, metrics: Mapping[str, Estimate], limit: float) -> Gate:
    value = metrics[metric]["value"] if metric in metrics else None
    if value is None:
        known = ", ".join(name for name, found in metrics.items() if found["value"] is not None)
        passed, why = False, f"{metric} is not measured on {split}; measured are {known or 'none'}"
    elif not math.isfinite(value):
        value, passed, why = None, False, f"{metric} is {value}, which is not a number to compare"
    elif metric in LOWER_IS_BETTER:
        passed = value <= limit
        why = f"{value:g} is {'at most' if passed else 'above'} {limit:g}"
    else:
        passed = value >= limit
        why = f"{value:g} is {'at least' if passed else 'below'} {limit:g}"
    return {
        "metric": metric,
        "split": split,
        "value": value,
        "limit": limit,
        "passed": passed,
        "why": why,
    }
