"""Loss curves as inline SVG: a few kilobytes, sharp at any size, in the colours of the page."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 20
MOST_POINTS = 150
TICKS = 4
TRAINED = ("cpt", "sft", "dpo")

Point = tuple[float, float]
"""Step and loss."""


@dataclass(frozen=True)
class Losses:
    """Of a training stage, by step; both are empty for one that is switched off."""

    training: list[Point]
    validation: list[Point]
    """Where it was measured."""


@dataclass(frozen=True)
class Tick:
    at: float
    """Position in the drawing."""
    text: str


@dataclass(frozen=True)
class Plot:
    """What the page draws of a stage; `line` and `validation` are the points of SVG polylines."""

    name: str
    steps: int
    first: float
    last: float
    line: str
    validation: str
    dots: list[Point]
    """Of the validation losses, in the drawing."""
    best: float | None
    """The lowest validation loss."""
    ticks_x: list[Tick]
    ticks_y: list[Tick]


def read(folder: Path) -> dict[str, Losses]:
    """The losses of each training stage, from <stage>.csv."""
    found = {}
    for name in TRAINED:
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found[name] = Losses(_column(rows, "loss"), _column(rows, "validation_loss"))
    return found


def _column(rows: Sequence[Mapping[str, str]], name: str) -> list[Point]:
    return [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]


def plot(name: str, losses: Losses) -> Plot:
    """Lay a curve out. Many steps are averaged in pairs, threes and so on, to MOST_POINTS."""
    points = losses.training
    size = math.ceil(len(points) / MOST_POINTS)
    shown = [_mean(points[start : start + size]) for start in range(0, len(points), size)]
    drawn = [loss for _, loss in (*shown, *losses.validation)]
    ticks = nice_ticks(min(drawn), max(drawn), TICKS)
    low, high = ticks[0], ticks[-1]
    first, last = points[0][0], points[-1][0]

    def x(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        return round(TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    return Plot(
        name=name,
        steps=len(points),
        first=points[0][1],
        last=points[-1][1],
        line=" ".join(f"{x(step)},{y(loss)}" for step, loss in shown),
        validation=" ".join(f"{x(step)},{y(loss)}" for step, loss in losses.validation),
        dots=[(x(step), y(loss)) for step, loss in losses.validation],
        best=min((loss for _, loss in losses.validation), default=None),
        ticks_x=[Tick(x(step), f"{step:g}") for step in dict.fromkeys((first, last))],
        ticks_y=[Tick(y(loss), f"{loss:.3g}") for loss in ticks],
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, a step of 1, 2 or 5 times a power of ten apart, that enclose
    low and high."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(
        factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude * count >= span
    )
    start, end = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 10) for index in range(start, max(end, start + 1) + 1)]


def _mean(points: Sequence[Point]) -> Point:
    return (
        sum(step for step, _ in points) / len(points),
        sum(loss for _, loss in points) / len(points),
    )
