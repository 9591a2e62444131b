"""Counts as bars: a row with its share of the widest one, and histograms as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.evaluation.curves import Tick, nice_ticks

WIDTH, HEIGHT = 300, 120
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 18
TICKS_X, TICKS_Y = 6, 3
GAP = 0.5
"""Between the bars of a histogram."""


@dataclass(frozen=True)
class Bar:
    """A count; `width` is 0 to 100, of the widest bar of its column, `share` of all its rows."""

    rows: int
    share: float
    width: float


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    text: str
    """What the bar says when it is pointed at."""


@dataclass(frozen=True)
class Histogram:
    """What the page draws of one distribution."""

    name: str
    rows: int
    bars: list[Rect]
    ticks_x: list[Tick]
    ticks_y: list[Tick]


def bars(counts: Sequence[int]) -> list[Bar]:
    """A column of bars."""
    most, total = max(counts, default=0) or 1, sum(counts) or 1
    return [Bar(rows, rows / total, round(100 * rows / most, 2)) for rows in counts]


def table(columns: Mapping[str, Mapping[str, int]]) -> list[tuple[str, list[Bar]]]:
    """Rows of several columns of bars, a row a name, in the order of first sight.

    Args:
        columns: counts by name, for each column.
    """
    names = list(dict.fromkeys(name for counts in columns.values() for name in counts))
    drawn = [bars([counts.get(name, 0) for name in names]) for counts in columns.values()]
    return [(name, [column[at] for column in drawn]) for at, name in enumerate(names)]


def histograms(counts: Mapping[str, Mapping[int, int]]) -> list[Histogram]:
    """Distributions below one another on one horizontal scale, so that they can be compared.

    Args:
        counts: by name, the rows of each bin, which is called by its upper bound.
    """
    bounds = sorted({bound for bins in counts.values() for bound in bins})
    if not bounds:
        return []
    width = min((right - left for left, right in pairwise(bounds)), default=0)
    width = width or bounds[-1]
    start, end = bounds[0] - width, bounds[-1]
    return [_histogram(name, bins, start, end, width) for name, bins in counts.items()]


def _histogram(name: str, bins: Mapping[int, int], start: int, end: int, width: int) -> Histogram:
    ticks = nice_ticks(0, max(bins.values(), default=1), TICKS_Y)
    high = ticks[-1]

    def x(value: float) -> float:
        return round(LEFT + (value - start) / (end - start) * (WIDTH - LEFT - RIGHT), 1)

    def y(rows: float) -> float:
        return round(TOP + (high - rows) / high * (HEIGHT - TOP - BOTTOM), 1)

    return Histogram(
        name=name,
        rows=sum(bins.values()),
        bars=[
            Rect(
                x=x(bound - width) + GAP / 2,
                y=y(rows),
                width=round(max(x(bound) - x(bound - width) - GAP, GAP), 1),
                height=round(y(0) - y(rows), 1),
                text=f"{bound - width + 1} to {bound} tokens: {rows} rows",
            )
            for bound, rows in bins.items()
            if rows
        ],
        ticks_x=[Tick(x(value), f"{value:g}") for value in _round_numbers(start, end)],
        ticks_y=[Tick(y(rows), f"{rows:g}") for rows in ticks if rows == int(rows)],
    )


def _round_numbers(start: int, end: int) -> Iterable[float]:
    return (value for value in nice_ticks(start, end, TICKS_X) if start <= value <= end)
