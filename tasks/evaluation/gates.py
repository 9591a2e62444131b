"""The verdict: the final candidate's numbers against the gates of params.yaml.

A pure function of two documents, so that whoever has a version can give its verdict again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from tasks.evaluation import comparisons, contamination
from tasks.evaluation.metrics import LOWER_IS_BETTER
from tasks.evaluation.statistics import NOT_MEASURED, Estimate

if TYPE_CHECKING:
    from tasks.params import Gates

CHAMPION = "champion"
REGRESSION = "regression"


class Gate(TypedDict):
    gate: str
    """What kind of gate: "metric", "simpler", "champion" or "forgetting"."""
    metric: str
    split: str
    value: float | None
    low: NotRequired[float | None]
    """Where the interval of a difference begins, of gates that are judged by it."""
    limit: float
    passed: bool
    why: str


class Verdict(TypedDict):
    candidate: str
    verdict: Literal["pass", "fail"]
    contaminated_share: Estimate
    """Of the split that was judged on: how far the verdict is to be believed."""
    gates: list[Gate]


def judge(document: Mapping[str, Any], gates: Gates) -> Verdict:
    """Hold the final candidate against the gates; all must hold.

    A number that is missing, or is not a number, fails its gate: a gate that cannot be checked must
    not let anything pass.

    Args:
        document: what evaluate.metrics.json holds.
    """
    final = str(document["final"])
    metrics = _at(document, "candidates", final, comparisons.SPLIT)
    held = [
        *(_metric(metric, metrics, limit) for metric, limit in gates.metrics.items()),
        *_simpler(document, gates),
        *_champion(document, gates),
        *_forgetting(document, gates),
    ]
    return {
        "candidate": final,
        "verdict": "pass" if all(gate["passed"] for gate in held) else "fail",
        "contaminated_share": metrics.get(contamination.METRIC, NOT_MEASURED),
        "gates": held,
    }


def hold(
    gate: str,
    metric: str,
    split: str,
    value: object,
    limit: float,
    *,
    at_most: bool,
    missing: str,
) -> Gate:
    """One number against its limit.

    Args:
        at_most: whether less is better.
        missing: why the gate fails where there is no value.
    """
    number = _number(value)
    if value is None:
        passed, why = False, missing
    elif number is None:
        passed, why = False, f"{metric} is {value}, which is not a number to compare"
    elif at_most:
        passed = number <= limit
        why = f"{number:g} is {'at most' if passed else 'above'} {limit:g}"
    else:
        passed = number >= limit
        why = f"{number:g} is {'at least' if passed else 'below'} {limit:g}"
    return {
        "gate": gate,
        "metric": metric,
        "split": split,
        "value": number,
        "limit": limit,
        "passed": passed,
        "why": why,
    }


def _metric(metric: str, metrics: Mapping[str, Any], limit: float) -> Gate:
    split = comparisons.SPLIT
    known = ", ".join(name for name in metrics if _at(metrics, name).get("value") is not None)
    return hold(
        "metric",
        metric,
        split,
        _at(metrics, metric).get("value"),
        limit,
        at_most=metric in LOWER_IS_BETTER,
        missing=f"{metric} is not measured on {split}; measured are {known or 'none'}",
    )


def _simpler(document: Mapping[str, Any], gates: Gates) -> Iterator[Gate]:
    """Against the best method that trains no model."""
    if gates.simpler is None:
        return
    candidates = _at(document, "candidates")
    best = comparisons.best_simpler(candidates, str(document.get("primary")))
    yield _compared(document, "simpler", best, gates.simpler.require, gates.simpler.margin)


def _champion(document: Mapping[str, Any], gates: Gates) -> Iterator[Gate]:
    """Against the pinned version; without one there is nothing to be compared with."""
    measured = CHAMPION in _at(document, "candidates")
    if gates.champion is None or not (measured or _at(document, "comparisons", CHAMPION)):
        return
    yield _compared(document, CHAMPION, CHAMPION, gates.champion.require, gates.champion.margin)


def _compared(
    document: Mapping[str, Any], gate: str, other: str | None, require: str, margin: float
) -> Gate:
    """The interval of a paired difference against 0, or against the margin below it."""
    final, metric = str(document["final"]), str(document.get("primary"))
    found = _at(document, "comparisons", gate)
    limit = 0.0 if require == "better" else -margin
    value, low = (_number(_at(found, "difference").get(key)) for key in ("value", "low"))
    why = _not_comparable(found, final, other, metric)
    passed = False
    if why is None and (value is None or low is None):
        why = f"the difference of {final} and {other} in {metric} is not measured"
    elif why is None and low is not None:
        passed = low > limit if require == "better" else low >= limit
        against = (
            f"{final} has {metric} {found.get('left_value'):g}, {other} "
            f"{found.get('right_value'):g}: the difference is {value:g}, and its interval begins at "
            f"{low:g}, "
        )
        if require == "better":
            why = against + ("above 0" if passed else "not above 0")
        else:
            margins = f"the margin of {limit:g}" if margin else "0"
            why = against + (f"not below {margins}" if passed else f"below {margins}")
    return {
        "gate": gate,
        "metric": metric,
        "split": comparisons.SPLIT,
        "value": value,
        "low": low,
        "limit": limit,
        "passed": passed,
        "why": str(why),
    }


def _not_comparable(
    found: Mapping[str, Any], final: str, other: str | None, metric: str
) -> str | None:
    """Why a comparison is none of these two by this metric."""
    if other is None:
        return f"no simpler method has {metric} on the test to compare {final} with"
    if not found:
        return f"{final} is not compared with {other}"
    expected = {"left": final, "right": other, "metric": metric, "split": comparisons.SPLIT}
    for key, value in expected.items():
        if found.get(key) != value:
            return f"the comparison has {key} {found.get(key)}, but must have {value}"
    for side in ("left_value", "right_value"):
        if _number(found.get(side)) is None:
            return f"the comparison has {side} {found.get(side)}, which is not a number"
    return None


def _forgetting(document: Mapping[str, Any], gates: Gates) -> Iterator[Gate]:
    """What of general text was lost, by numbers of the regression rows."""
    limits = gates.forgetting
    missing = (
        "there is no measured forgetting: give ingest.sources a file with role regression, or set "
        "the limit to null"
    )
    if limits.max_perplexity_ratio is not None:
        ratio = _at(document, "forgetting", "perplexity_ratio")
        yield _explained(
            hold(
                "forgetting",
                "perplexity_ratio",
                REGRESSION,
                ratio.get("value"),
                limits.max_perplexity_ratio,
                at_most=True,
                missing=missing,
            ),
            "times the base model's perplexity",
        )
    if limits.max_following_drop is not None:
        following = _at(document, "forgetting", "following")
        base = _at(following, "base").get("value")
        change = _number(_at(following, "difference").get("value"))
        held = hold(
            "forgetting",
            "following_drop",
            REGRESSION,
            _at(following, "difference").get("value") if change is None else -change or 0.0,
            limits.max_following_drop,
            at_most=True,
            missing=missing,
        )
        metric = following.get("metric")
        told = ""
        if (before := _number(base)) is not None:
            told = f"lost of the base model's {metric} of {before:g}"
            if before <= limits.max_following_drop:
                told = f"lost of a base model whose {metric} is {before:g}, so could not fail,"
        yield _explained(held, told)


def _explained(gate: Gate, what: str) -> Gate:
    """A gate whose reason tells what its number is of."""
    if gate["value"] is None or not what:
        return gate
    number, _, rest = gate["why"].partition(" is ")
    return {**gate, "why": f"{number} {what} is {rest}"}


def _at(document: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies below some keys; nothing where that is no mapping."""
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
