"""The test in slices: where the final candidate is better or worse than another.

Many slices make it likely that one looks bad by luck, so their p-values are adjusted together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from tasks.evaluation import labels, statistics
from tasks.evaluation.comparisons import NOISE, Says, right_or_wrong
from tasks.evaluation.rows import Row
from tasks.evaluation.statistics import NOT_MEASURED, Estimate

Unit = Literal["tokens", "characters"]

MIN_ROWS = 20
"""Of a slice: of fewer, an interval spans most of what there is."""
MOST_MONTHS = 12
"""Rows of more months than that are sliced by quarters."""
TOO_FEW: Literal["too few rows"] = "too few rows"
NO_TIME = "no time"
HARD, NOT_HARD = "hard test", "the rest of the test"
_FIXED = ("length", "hard")
"""Kinds whose slices are not put together: longest and shortest are not one."""


class Slice(TypedDict):
    kind: str
    """"class", "length", "source", "time" or "hard"."""
    name: str
    rows: int
    final: Estimate
    other: Estimate
    other_name: str
    difference: Estimate
    """Final less other."""
    p_value: float | None
    """McNemar's, or of a randomisation test where answers are not right or wrong."""
    p_holm: float | None
    """Adjusted for all slices, of all kinds (Holm 1979)."""
    says: Says | Literal["too few rows"]


def measure(
    rows: Sequence[Row],
    lengths: Sequence[int],
    final_outcomes: Sequence[float],
    other_outcomes: Sequence[float],
    other_name: str,
    confidence: float,
    seed: int,
    unit: Unit = "tokens",
) -> list[Slice]:
    """Compare two candidates on every slice of the rows.

    Slices of a kind with fewer than MIN_ROWS rows are put together; where that is too small still,
    it is told with its rows and without numbers.  A kind that does not divide the rows is left out.

    Args:
        rows: of the test.
        lengths: of their prompts.
        final_outcomes: of each row, as `metrics.outcomes` gives them; more is better.
        other_outcomes: of the same rows.
        unit: what `lengths` counts.

    Raises:
        ValueError: when the arguments are not of the same rows.
    """
    if not len(rows) == len(lengths) == len(final_outcomes) == len(other_outcomes):
        raise ValueError("rows, lengths and outcomes must be of the same rows, in the same order")
    kinds: dict[str, Sequence[str | None]] = {
        "class": _classes(rows),
        "length": _lengths(lengths, unit),
        "source": [row.source for row in rows],
        "time": _times(rows),
        "hard": [HARD if row.hard else NOT_HARD for row in rows],
    }
    long = dict(zip(kinds["length"], lengths, strict=True))
    found = [
        _compare(kind, name, at, final_outcomes, other_outcomes, other_name, confidence, seed)
        for kind, names in kinds.items()
        for name, at in _divide(kind, names, long if kind == "length" else {})
    ]
    return _adjusted(found, confidence)


def _adjusted(slices: Sequence[Slice], confidence: float) -> list[Slice]:
    tested = [(one, one["p_value"]) for one in slices if one["p_value"] is not None]
    adjusted = statistics.holm([p_value for _, p_value in tested])
    for (one, _), p_holm in zip(tested, adjusted, strict=True):
        change = one["difference"]["value"] or 0.0
        says: Says = NOISE
        one["p_holm"] = p_holm
        if p_holm <= round(1 - confidence, 9) and change:
            says = "better" if change > 0 else "worse"
        one["says"] = says
    return list(slices)


def _divide(
    kind: str, names: Sequence[str | None], order: Mapping[str | None, int]
) -> list[tuple[str, list[int]]]:
    """Positions by name, in an order or else that of the alphabet; small slices together. Nothing
    where there are no two slices."""
    slices: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        if name is not None:
            slices.setdefault(name, []).append(at)
    if len(slices) < 2:
        return []
    slices = {
        name: slices[name] for name in sorted(slices, key=lambda name: (order.get(name, 0), name))
    }
    small = [name for name, at in slices.items() if len(at) < MIN_ROWS]
    if kind in _FIXED or len(small) < 2:
        return list(slices.items())
    together = sorted(at for name in small for at in slices.pop(name))
    return [*slices.items(), (f"{len(small)} with fewer than {MIN_ROWS} rows", together)]


def _compare(
    kind: str,
    name: str,
    at: Sequence[int],
    final_outcomes: Sequence[float],
    other_outcomes: Sequence[float],
    other_name: str,
    confidence: float,
    seed: int,
) -> Slice:
    pairs = [
        (float(final_outcomes[row]), float(other_outcomes[row]))
        for row in at
        if not math.isnan(final_outcomes[row]) and not math.isnan(other_outcomes[row])
    ]
    told: Slice = {
        "kind": kind,
        "name": name,
        "rows": len(pairs),
        "final": NOT_MEASURED,
        "other": NOT_MEASURED,
        "other_name": other_name,
        "difference": NOT_MEASURED,
        "p_value": None,
        "p_holm": None,
        "says": TOO_FEW,
    }
    if len(pairs) < MIN_ROWS:
        return told
    final, other = [a for a, _ in pairs], [b for _, b in pairs]
    if right_or_wrong(final) and right_or_wrong(other):
        p_value = statistics.mcnemar([a == 1 for a in final], [b == 1 for b in other])[2]
    else:
        p_value = statistics.sign_flips(statistics.differences(final, other), seed)
    difference = statistics.paired_difference(final, other, confidence, seed)
    told.update(
        {
            "final": statistics.average(final, confidence, seed),
            "other": statistics.average(other, confidence, seed),
            "difference": difference,
            "p_value": p_value,
            "says": NOISE,
        }
    )
    return told


def _classes(rows: Sequence[Row]) -> list[str | None]:
    """The label of each row, of the first field whose values are classes."""
    expected = [row.expected for row in rows]
    fields = labels.find(expected)
    return [fields[0].label(text) for text in expected] if fields else [None] * len(rows)


def _lengths(lengths: Sequence[int], unit: Unit) -> list[str | None]:
    """Terciles; equal lengths are never parted."""
    if not lengths:
        return []
    ordered = sorted(lengths)
    short, medium = (ordered[math.ceil(len(ordered) * part / 3) - 1] for part in (1, 2))

    def name(length: int) -> str:
        if length <= short:
            return f"up to {short} {unit}"
        if length <= medium:
            return f"{short + 1} to {medium} {unit}"
        return f"more than {medium} {unit}"

    return [name(length) for length in lengths]


def _times(rows: Sequence[Row]) -> list[str | None]:
    """Months, or quarters of a longer time; nothing where no row tells its time."""
    months = [row.time[:7] if row.time else None for row in rows]
    if not any(months):
        return [None] * len(rows)
    if len(set(months) - {None}) > MOST_MONTHS:
        months = [
            f"{month[:4]} Q{(int(month[5:]) + 2) // 3}" if month else None for month in months
        ]
    return [month or NO_TIME for month in months]
