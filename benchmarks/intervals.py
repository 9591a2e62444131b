"""Measure how often the intervals of the evaluation hold the truth.

    python benchmarks/intervals.py [--quick] [--runs N] [--json FILE]

Draws 2,000 test sets for each setting, from a truth that is drawn anew for each, so that no single
truth that happens to suit the steps of a share decides, and counts how many of the 95% intervals hold
it. Beside what `tasks/evaluation/statistics.py` gives stand, of the smaller sizes, the three common
bootstrap intervals, each used throughout: percentile, BCa (Efron 1987) and studentised.

Prints a table, with the median width of the intervals in brackets, and one line a claim; exits 1 when
one falls short. `--quick` draws 400 test sets of the smaller sizes, whose counts vary by 2 in 100: its
claims allow for that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tasks.evaluation import metrics, statistics
from tasks.evaluation.metrics import Answered
from tasks.evaluation.statistics import Estimate

CONFIDENCE, RUNS, QUICK_RUNS = 0.95, 2000, 400
TARGET, QUICK_TARGET = (0.94, 0.96), (0.92, 0.98)
SEED = 20261122
METHODS = ("ours", "percentile", "bca", "studentised")
CLASSES = 6

Floats = NDArray[np.float64]
Sample = tuple[float, Estimate, tuple[Floats, Floats] | None]
"""The truth, our interval, and the sums over which it is a quotient, where it is one."""
Draw = Callable[[np.random.Generator, int], Sample]


@dataclass(frozen=True)
class Coverage:
    """How many of the intervals of a setting hold the truth."""

    setting: str
    rows: int
    runs: int
    held: dict[str, float]
    """Share of the intervals, by method."""
    width: dict[str, float] = field(default_factory=dict)
    """Median width, by method."""


def shares(generator: np.random.Generator, rows: int) -> Sample:
    """Two candidates that are each right on 80 to 99% of the rows, mostly on the same."""
    return _difference(generator, rows, (0.02, 0.10))


def few(generator: np.random.Generator, rows: int) -> Sample:
    """Two candidates that answer nearly all rows alike."""
    return _difference(generator, rows, (0.005, 0.03))


def _difference(generator: np.random.Generator, rows: int, between: tuple[float, float]) -> Sample:
    left_only, right_only = generator.uniform(*between, size=2)
    both = (1 - left_only - right_only) * generator.uniform(0.9, 0.99)
    neither = 1 - left_only - right_only - both
    kinds = generator.choice(4, size=rows, p=[left_only, right_only, both, neither])
    left, right = np.isin(kinds, (0, 2)).astype(float), np.isin(kinds, (1, 2)).astype(float)
    found = statistics.paired_difference(
        left.tolist(), right.tolist(), CONFIDENCE, _seed(generator)
    )
    return left_only - right_only, found, (left - right, np.ones(rows))


def share(generator: np.random.Generator, rows: int) -> Sample:
    """A candidate that is right on 85 to 95% of the rows."""
    truth = generator.uniform(0.85, 0.95)
    return truth, statistics.proportion(generator.binomial(rows, truth), rows, CONFIDENCE), None


def perplexity_ratio(generator: np.random.Generator, rows: int) -> Sample:
    """Rows of 2 to 60 tokens, on which a model lost 0.5 nats a token, a few rows far more."""
    tokens = generator.integers(2, 61, size=rows).astype(float)
    before = generator.gamma(4.0, 1.0, size=rows) * tokens
    after = before + (generator.gamma(1.5, 0.5, size=rows) - 0.25) * tokens
    found = statistics.ratio(
        after.tolist(), before.tolist(), tokens.tolist(), CONFIDENCE, _seed(generator)
    )
    return float(np.exp(0.5)), found, (after - before, tokens)


def rouge_l(generator: np.random.Generator, rows: int) -> Sample:
    """Free text of which half the answers are the same, and the others better by 0.1 on average."""
    same = generator.random(rows) < 0.5
    right = generator.beta(2, 3, size=rows)
    left = np.where(same, right, generator.beta(2.5, 2.5, size=rows))
    found = statistics.paired_difference(
        left.tolist(), right.tolist(), CONFIDENCE, _seed(generator)
    )
    return 0.5 * (0.5 - 0.4), found, (left - right, np.ones(rows))


def macro_f1(generator: np.random.Generator, rows: int) -> Sample:
    """Six classes of unequal size, found with 80% to 95%, else taken for the next one."""
    sizes = np.array([0.3, 0.2, 0.15, 0.15, 0.1, 0.1])
    rates = generator.uniform(0.8, 0.95, size=CLASSES)
    hits, strays = sizes * rates, np.roll(sizes * (1 - rates), 1)
    truth = float((2 * hits / (sizes + hits + strays)).mean())
    asked = generator.choice(CLASSES, size=rows, p=sizes)
    given = np.where(generator.random(rows) < rates[asked], asked, (asked + 1) % CLASSES)
    answered = [Answered(str(a), str(b), None, 0) for a, b in zip(asked, given, strict=True)]
    measured = metrics.measure(answered, "classification", CONFIDENCE, _seed(generator))
    return truth, measured["macro_f1"], None


SETTINGS: tuple[tuple[str, Draw, tuple[int, ...]], ...] = (
    ("difference of shares", shares, (100, 300, 1000)),
    ("few rows differ", few, (300, 1000)),
    ("share", share, (100, 300, 1000)),
    ("perplexity ratio", perplexity_ratio, (100, 200)),
    ("difference of rouge_l", rouge_l, (100, 300)),
    ("macro F1", macro_f1, (300,)),
)


def covered(setting: str, draw: Draw, rows: int, runs: int, beside: bool) -> Coverage:
    """Draw test sets and count the intervals that hold the truth."""
    generator = np.random.default_rng([SEED, rows, len(setting)])
    held: dict[str, int] = {}
    widths: dict[str, list[float]] = {}
    for _ in range(runs):
        truth, ours, sums = draw(generator, rows)
        low, high = ours["low"], ours["high"]
        if low is None or high is None:
            sys.exit(f"{setting} of {rows} rows gave no interval")
        intervals = {"ours": (low, high)}
        if sums is not None and beside:
            others = peers(*sums, _seed(generator))
            if setting == "perplexity ratio":
                others = {name: tuple(map(float, np.exp(ends))) for name, ends in others.items()}
            intervals |= others
        for method, (low, high) in intervals.items():
            # numbers are told with six digits
            held[method] = held.get(method, 0) + (low - 1e-6 <= truth <= high + 1e-6)
            widths.setdefault(method, []).append(high - low)
    return Coverage(
        setting,
        rows,
        runs,
        {method: count / runs for method, count in held.items()},
        {method: round(float(np.median(found)), 4) for method, found in widths.items()},
    )


def peers(over: Floats, under: Floats, seed: int) -> dict[str, tuple[float, float]]:
    """Percentile, BCa and studentised interval of a quotient of sums, from one set of samples."""
    rows, value = len(over), over.sum() / under.sum()
    rest = over - value * under
    columns = np.stack([rest, under, rest * rest, rest * under, under * under], axis=1)
    sums = np.concatenate(list(statistics._resampled(columns, seed)))
    moves = sums[:, 0] / sums[:, 1]
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    percentile = value + np.quantile(moves, tails)
    found = {"percentile": (float(percentile[0]), float(percentile[1]))}

    level = abs(moves) < 1e-12  # a sample that says what the rows say, but for rounding
    below = (moves[~level] < 0).sum() / len(moves) + level.mean() / 2
    below = np.clip(below, 1 / rows**2, 1 - 1 / rows**2)
    spread = (rest**2).sum()
    skew = (rest**3).sum() / (6 * spread**1.5) if spread else 0.0
    shifted = norm.ppf(below) + norm.ppf(tails)
    corrected = value + np.quantile(
        moves, norm.cdf(norm.ppf(below) + shifted / (1 - skew * shifted))
    )
    found["bca"] = (float(corrected[0]), float(corrected[1]))

    squares = sums[:, 2] - 2 * moves * sums[:, 3] + moves**2 * sums[:, 4]
    spreads = np.sqrt(np.maximum(squares, 0)) / sums[:, 1]
    scaled = moves[spreads > 1e-12] / spreads[spreads > 1e-12]
    high, low = (0.0, 0.0) if not len(scaled) else np.quantile(scaled, tails)
    one = np.sqrt(spread) / under.sum()
    found["studentised"] = (float(value - one * low), float(value - one * high))
    return found


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="400 test sets of the smaller sizes")
    parser.add_argument("--runs", type=int, help="test sets of each setting")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    low, high = QUICK_TARGET if options.quick else TARGET

    print(f"{'setting':<24}{'rows':>6}" + "".join(f"{method:>22}" for method in METHODS))
    found = []
    for setting, draw, sizes in SETTINGS:
        for rows in sizes[:1] if options.quick else sizes:
            one = covered(setting, draw, rows, runs, beside=rows == sizes[0])
            cells = (
                f"{one.held[method]:.2%} ({one.width[method]:.4f})" if method in one.held else "-"
                for method in METHODS
            )
            print(f"{setting:<24}{rows:>6}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
            found.append(one)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    short = False
    for one in found:
        ok = low <= one.held["ours"] <= high
        short |= not ok
        print(
            f"claim: coverage of {one.setting}, {one.rows} rows measured {one.held['ours']:.2%} "
            f"target {low:.0%} to {high:.0%} {'ok' if ok else 'short'}"
        )
    sys.exit(1 if short else 0)


if __name__ == "__main__":
    main()
