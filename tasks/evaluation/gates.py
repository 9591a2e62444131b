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
    """What kind of gate: "metric", "simpler", "champion" or "forgetting"; "document" is one that
    fails where the document is not of its form."""
    metric: str
    split: str
    value: float | None
    low: NotRequired[float | None]
    """Where the interval of a difference begins, of gates that are judged by it."""
    worst: NotRequired[float | None]
    """The worse end of the interval of what was forgotten, which is held against the limit."""
    limit: float
    passed: bool
    could_fail: NotRequired[Literal[False]]
    """Of a gate that passes whatever the candidate does, and so is no evidence."""
    why: str


class Verdict(TypedDict):
    candidate: str
    verdict: Literal["pass", "fail"]
    contaminated_share: Estimate
    """Of the split that was judged on: how far the verdict is to be believed."""
    gates: list[Gate]
    champion_by_source: NotRequired[dict[str, BySource]]
    """Where the test has rows of several sources; no gate asks for it."""


class BySource(TypedDict):
    """How the final candidate stands against the champion on the test rows of a source."""

    rows: int
    difference: Estimate
    says: str


def judge(document: Any, gates: Gates, champion: str | None) -> Verdict:
    """Hold the final candidate against the gates; all must hold.

    A number that is missing, or is not a number, fails its gate, and a document that is not of its
    form fails one of its own: what cannot be checked must not let anything pass. Nothing is raised.

    Args:
        document: what evaluate.metrics.json holds.
        champion: identity of the version to compare with, as evaluate.champion has it.
    """
    if why := _malformed(document):
        return {
            "candidate": _kind(_at(document).get("final")),
            "verdict": "fail",
            "contaminated_share": NOT_MEASURED,
            "gates": [_unchecked("document", "form", why)],
        }
    final = document["final"]
    metrics = _at(document, "candidates", final, comparisons.SPLIT)
    held = [
        *(_metric(metric, metrics, limit) for metric, limit in gates.metrics.items()),
        *_simpler(document, gates),
        *_champion(document, gates, champion),
        *_forgetting(document, gates),
    ]
    verdict: Verdict = {
        "candidate": final,
        "verdict": "pass" if all(gate["passed"] for gate in held) else "fail",
        "contaminated_share": metrics.get(contamination.METRIC, NOT_MEASURED),
        "gates": held,
    }
    if by_source := _at(document, "champion_by_source"):
        verdict["champion_by_source"] = {
            source: {
                "rows": _at(found).get("rows", 0),
                "difference": _at(found).get("difference", NOT_MEASURED),
                "says": _at(found).get("says", "not compared"),
            }
            for source, found in by_source.items()
        }
    return verdict


def _malformed(document: Any) -> str | None:
    """Why nothing can be judged by a document; None where it has the form of one."""
    if not isinstance(document, Mapping):
        return f"the document is {_kind(document)}, not a mapping"
    for key in ("final", "primary"):
        if not isinstance(document.get(key), str):
            return f"{key} is {_kind(document.get(key))}, not a name"
    values: list[tuple[str, Any]] = [("candidates", document.get("candidates"))]
    for depth in range(4):  # candidates, each of them, each split, each metric
        for place, value in values:
            if not isinstance(value, Mapping):
                return f"{place} is {_kind(value)}, not a mapping"
        if depth < 3:
            values = [(f"{at}.{key}", below) for at, of in values for key, below in of.items()]
    simpler = comparisons.simpler_values(document["candidates"], document["primary"])
    for name, value in simpler.items():
        if _number(value) is None:
            return f"{document['primary']} of {name} is {_kind(value)}, not a number to compare"
    return None


def _kind(value: object) -> str:
    """A value in a few characters."""
    if value is None:
        return "missing"
    if isinstance(value, list | Mapping):
        return f"a {type(value).__name__}"
    try:
        return str(value)[:40]
    except ValueError:  # a whole number of thousands of digits
        return "no number that can be told"


def _unchecked(gate: str, metric: str, why: str) -> Gate:
    """A gate that fails for want of what it would be judged by."""
    return {
        "gate": gate,
        "metric": metric,
        "split": comparisons.SPLIT,
        "value": None,
        "limit": 0.0,
        "passed": False,
        "why": why,
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
        passed, why = False, f"{metric} is {_kind(value)}, which is not a number to compare"
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
    best = comparisons.best_simpler(document["candidates"], document["primary"])
    yield _compared(document, "simpler", best, gates.simpler.require, gates.simpler.margin)


def _champion(document: Mapping[str, Any], gates: Gates, champion: str | None) -> Iterator[Gate]:
    """Against the pinned version; without one there is nothing to be compared with. One that is
    pinned and was not compared with fails, whether or not it has a gate."""
    measured = CHAMPION in document["candidates"]
    compared = bool(_at(document, "comparisons", CHAMPION))
    if champion is not None and not (measured and compared):
        why = (
            f"evaluate.champion is {_kind(champion)[:12]}, but nothing is compared with a champion"
        )
        yield _unchecked(CHAMPION, document["primary"], why)
        return
    if gates.champion is None or not (measured or compared):
        return
    yield _compared(document, CHAMPION, CHAMPION, gates.champion.require, gates.champion.margin)


def _compared(
    document: Mapping[str, Any], gate: str, other: str | None, require: str, margin: float
) -> Gate:
    """The interval of a paired difference against 0, or against the margin below it; to be better
    asks for what a comparison calls so, which is McNemar's test too."""
    final, metric = document["final"], document["primary"]
    found = _at(document, "comparisons", gate)
    limit = 0.0 if require == "better" else -margin
    value, low = (_number(_at(found, "difference").get(key)) for key in ("value", "low"))
    why = _not_comparable(found, final, other, metric)
    passed = False
    if why is None and (value is None or low is None):
        why = f"the difference of {final} and {other} in {metric} is not measured"
    elif why is None and low is not None:
        above = low > limit if require == "better" else low >= limit
        passed = above and (require != "better" or found.get("says") == "better")
        against = (
            f"{final} has {metric} {found.get('left_value'):g}, {other} "
            f"{found.get('right_value'):g}: the difference is {value:g}, and its interval begins at "
            f"{low:g}, "
        )
        if require == "better":
            why = against + ("above 0" if above else "not above 0")
            if above and not passed:
                why += f", but {_doubt(found)}"
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


def _doubt(found: Mapping[str, Any]) -> str:
    """Why a difference whose interval lies above 0 is not called better."""
    says, p_value = found.get("says"), _number(found.get("p_value"))
    if says == comparisons.NOISE and p_value is not None:
        return f"McNemar's test calls that luck (p {p_value:g}): {comparisons.NOISE}"
    return f"what the comparison says is {_kind(says)}"


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
            return f"the comparison has {key} {_kind(found.get(key))}, but must have {value}"
    for side in ("left_value", "right_value"):
        if _number(found.get(side)) is None:
            return f"the comparison has {side} {_kind(found.get(side))}, which is not a number"
    return None


def _forgetting(document: Mapping[str, Any], gates: Gates) -> Iterator[Gate]:
    """What of general text was lost, by numbers of the regression rows."""
    limits = gates.forgetting
    if limits.max_perplexity_ratio is not None:
        ratio = _at(document, "forgetting", "perplexity_ratio")
        yield _lost(
            "perplexity_ratio",
            ratio.get("value"),
            ratio.get("high"),
            limits.max_perplexity_ratio,
            "times the base model's perplexity",
        )
    if limits.max_following_drop is not None:
        following = _at(document, "forgetting", "following")
        before = _number(_at(following, "base").get("value"))
        told = "lost"
        if before is not None:
            told = f"lost of the base model's {_kind(following.get('metric'))} of {before:g}"
        held = _lost(
            "following_drop",
            _negative(_at(following, "difference").get("value")),
            _negative(_at(following, "difference").get("low")),
            limits.max_following_drop,
            told,
        )
        # a base model that scores so little cannot lose more, at the worse end either
        most = _number(_at(following, "base").get("high"))
        most = before if most is None else most
        if held["passed"] and most is not None and most <= limits.max_following_drop:
            held["could_fail"] = False
            held["why"] += "; it cannot fail, since the base model has no more than that to lose"
        yield held


def _lost(metric: str, value: object, worst: object, limit: float, what: str) -> Gate:
    """The worse end of an interval against the most that may be lost: few rows prove nothing.

    Args:
        what: what the number is of.
    """
    number, end = _number(value), _number(worst)
    passed = False
    if value is None:
        why = (
            "there is no measured forgetting: give ingest.sources a file with role regression, or "
            "set the limit to null"
        )
    elif number is None:
        why = f"{metric} is {_kind(value)}, which is not a number to compare"
    elif end is None:
        why = f"{number:g} {what}, without an interval to hold against {limit:g}"
    else:
        end = max(number, end)
        passed = end <= limit
        why = (
            f"{number:g} {what}: the worse end of the interval, {end:g}, is "
            f"{'at most' if passed else 'above'} {limit:g}"
        )
    return {
        "gate": "forgetting",
        "metric": metric,
        "split": REGRESSION,
        "value": number,
        "worst": end,
        "limit": limit,
        "passed": passed,
        "why": why,
    }


def _negative(value: object) -> object:
    """A change as what is lost; what is no number stays as it is."""
    number = _number(value)
    return value if number is None else -number or 0.0


def _at(document: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies below some keys; nothing where that is no mapping."""
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None
