"""Forest plots: a difference and its interval a row, on one scale, with a line at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tasks.evaluation.curves import Tick, nice_ticks

TICKS = 4
KINDS = {
    "class": "By expected answer",
    "length": "By length of the prompt",
    "source": "By source",
    "time": "By time",
    "hard": "By hardness",
}


@dataclass(frozen=True)
class Mark:
    """Positions of a difference and the ends of its interval, 0 to 100 from left to right."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A row of the plot; `mark` is None where nothing could be measured."""

    slice: Mapping[str, Any]
    mark: Mark | None


@dataclass(frozen=True)
class Forest:
    """What the page draws: lines by kind of slice, and the scale that they share."""

    groups: list[tuple[str, list[Line]]]
    ticks: list[Tick]
    zero: float


def forest(slices: Sequence[Mapping[str, Any]]) -> Forest | None:
    """Lay slices out by their `difference`; None where there are none."""
    if not slices:
        return None
    ends = [end for one in slices for end in one["difference"].values() if end is not None]
    ticks = nice_ticks(min([0.0, *ends]), max([0.0, *ends]), TICKS)
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    def line(one: Mapping[str, Any]) -> Line:
        found = one["difference"]
        if found["value"] is None:
            return Line(one, None)
        start = found["value"] if found["low"] is None else found["low"]
        end = found["value"] if found["high"] is None else found["high"]
        return Line(one, Mark(x(found["value"]), x(start), x(end)))

    groups = groupby(slices, key=lambda one: one["kind"])
    return Forest(
        groups=[(KINDS.get(kind, f"By {kind}"), list(map(line, every))) for kind, every in groups],
        ticks=[Tick(x(value), f"{value:+g}" if value else "0") for value in ticks],
        zero=x(0.0),
    )
