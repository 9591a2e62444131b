"""How sure a number is, given how few rows it comes from.

Shares have Wilson's interval.  All else is bootstrapped (Efron 1979): whole rows are drawn, and for
differences whole pairs.  The interval is the studentised one (Efron 1982) for means and sums over
sums of many different numbers, since it follows their skew, and the percentile interval where a
sample cannot tell its own spread: for differences of right and wrong, where few rows are unlike the
others, and for metrics that have no formula for it.  Where nearly no row differs the bootstrap sees
too little, and Tango's score interval takes its place.  `benchmarks/intervals.py` measures how often
each of them holds the truth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

DIGITS = 6
"""Numbers are rounded, so that the last bits of a platform's arithmetic do not reach an output."""
RESAMPLES = 2000
FLIPS = 9999
"""Of signs, with the one that was seen: p-values are multiples of 1 / 10,000."""
POWER = 0.8
FEW = 10
"""Rows unlike all others, below which the bootstrap sees too little of a difference."""
DIFFERING = 40
"""Rows unlike all others, from which on an interval is studentised."""
_AT_ONCE = 2_000_000
"""Rows that are drawn in one go, so that memory does not grow with the test set."""


class Estimate(TypedDict):
    """A metric with its confidence interval; None for what could not be measured."""

    value: float | None
    low: float | None
    high: float | None


NOT_MEASURED: Estimate = {"value": None, "low": None, "high": None}


def share(outcomes: Sequence[bool], confidence: float) -> Estimate:
    """Share of true outcomes, as `proportion`."""
    return proportion(sum(outcomes), len(outcomes), confidence)


def proportion(hits: int, trials: int, confidence: float) -> Estimate:
    """A share, with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: without trials, of which there is no share.
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return _estimate(hits / trials, interval.low, interval.high)


def mean(values: Sequence[float], confidence: float, seed: int) -> Estimate:
    """A mean of numbers that are no mere outcomes, such as ROUGE-L of each row.

    Raises:
        ValueError: without values.
    """
    return _rounded(_quotient(values, [1.0] * len(values), confidence, seed))


def perplexity(
    nlls: Sequence[float], tokens: Sequence[int], confidence: float, seed: int
) -> Estimate:
    """exp of the mean negative log-likelihood a token; whole rows are drawn, since the tokens of a
    row depend on one another.

    Args:
        nlls: nats, summed over each row.
        tokens: number of scored tokens of each row.

    Raises:
        ValueError: without rows.
    """
    import numpy

    with numpy.errstate(over="ignore"):
        return _rounded(tuple(map(numpy.exp, _quotient(nlls, tokens, confidence, seed))))


def average(values: Sequence[float], confidence: float, seed: int) -> Estimate:
    """A mean as `mean`, but where all values are 0 or 1 a share as `proportion`: values that are
    all the same would look certain."""
    if all(value in (0, 1) for value in values):
        return proportion(int(sum(values)), len(values), confidence)
    return mean(values, confidence, seed)


def paired_difference(
    left: Sequence[float], right: Sequence[float], confidence: float, seed: int
) -> Estimate:
    """Mean of the left less mean of the right, on the same rows; pairs are drawn together.

    Where nearly all rows differ alike, the interval reaches as far as Tango's score interval (1998)
    of rows won less rows lost: two that answer ten rows alike are not proven equal.

    Args:
        left: between 0 and 1.

    Raises:
        ValueError: when the two are not of the same rows, or there are none.
    """
    found = differences(left, right)
    estimate = mean(found, confidence, seed)
    won, lost = sum(value > 0 for value in found), sum(value < 0 for value in found)
    low, high = estimate["low"], estimate["high"]
    unlike = len(found) - max(Counter(found).values(), default=0)
    if unlike >= FEW or low is None or high is None:
        return estimate
    lowest, highest = _tango(won, lost, len(found), confidence)
    if set(found) <= {-1.0, 0.0, 1.0}:
        return _estimate(estimate["value"] or 0.0, lowest, highest)
    return _estimate(estimate["value"] or 0.0, min(low, lowest), max(high, highest))


def _tango(won: int, lost: int, rows: int, confidence: float) -> tuple[float, float]:
    """The differences that a score test of rows won less rows lost does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    limit = norm.ppf((1 + confidence) / 2)

    def score(difference: float) -> float:
        # the likeliest share of rows lost, given the difference: the root of a quadratic
        linear = (2 * rows - won + lost) * difference - won - lost
        root = linear * linear + 8 * rows * lost * difference * (1 - difference)
        losing = (math.sqrt(max(0.0, root)) - linear) / (4 * rows)
        variance = rows * (2 * losing + difference * (1 - difference))
        if variance <= 0:
            return math.copysign(math.inf, won - lost - rows * difference)
        return float((won - lost - rows * difference) / math.sqrt(variance))

    seen, least = (won - lost) / rows, 1e-9

    def bound(end: float) -> float:
        def beyond(difference: float) -> float:
            return score(difference) + math.copysign(limit, end)

        start = seen + math.copysign(least, end)
        if abs(start) >= 1 or beyond(start) * beyond(end * (1 - least)) >= 0:
            return end
        return float(brentq(beyond, start, end * (1 - least)))

    return bound(-1.0), bound(1.0)


def ratio(
    left_nlls: Sequence[float],
    right_nlls: Sequence[float],
    tokens: Sequence[int],
    confidence: float,
    seed: int,
) -> Estimate:
    """Perplexity of the left over perplexity of the right, on the same rows.

    Args:
        left_nlls: nats of the same tokens as `right_nlls`, summed over each row.
        tokens: number of scored tokens of each row.
    """
    return perplexity(differences(left_nlls, right_nlls), tokens, confidence, seed)


def differences(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """Left less right, row by row."""
    return [a - b for a, b in zip(left, right, strict=True)]


def mcnemar(left: Sequence[bool], right: Sequence[bool]) -> tuple[int, int, float]:
    """Whether two candidates, on the same rows, differ by more than luck.

    Returns:
        rows that only the left gets right, rows that only the right gets right, and the exact
        two-sided p-value (McNemar 1947, the binomial form): the chance of so uneven a split if
        either were as likely to win a row.
    """
    from scipy.stats import binomtest

    left_only = sum(a and not b for a, b in zip(left, right, strict=True))
    right_only = sum(b and not a for a, b in zip(left, right, strict=True))
    if left_only + right_only == 0:
        return 0, 0, 1.0
    p_value = binomtest(left_only, left_only + right_only).pvalue
    return left_only, right_only, round(float(p_value), DIGITS)


def sign_flips(differences: Sequence[float], seed: int) -> float:
    """The same question for numbers that are no mere outcomes: the two-sided p-value of Fisher's
    randomisation test (1935), by which the sign of each row's difference is as likely to be the
    other one."""
    import numpy

    values = numpy.array([value for value in differences if value], dtype=float)
    if not len(values):
        return 1.0
    generator = numpy.random.default_rng(seed)
    # a sum that only rounding tells from the one that was seen is as extreme as it
    seen = abs(values.sum()) * (1 - 1e-9)
    extreme = 1
    for count in _blocks(FLIPS, len(values)):
        signs = 2.0 * generator.integers(2, size=(count, len(values)), dtype=numpy.int8) - 1
        extreme += int((abs(signs @ values) >= seen).sum())
    return round(extreme / (FLIPS + 1), DIGITS)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that one false alarm among all of them is as rare as
    one test alone would have it (Holm 1979); in the order given."""
    adjusted = [0.0] * len(p_values)
    most = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        most = max(most, min(1.0, p_values[at] * (len(p_values) - rank)))
        adjusted[at] = round(most, DIGITS)
    return adjusted


def smallest_resolvable(differences: Sequence[float], confidence: float) -> float | None:
    """The smallest true mean difference that a test on such rows notices with probability POWER.

    Args:
        differences: left less right of each row. Where all are -1, 0 or 1, the test is McNemar's
            and its power is summed exactly, with the share of rows that were answered differently
            taken as it is here, or as large as a difference needs; else it is a z-test with the
            standard deviation found here.

    Returns:
        None where no difference can be noticed, or nothing is known of how rows differ.
    """
    import numpy
    from scipy.stats import norm

    values = numpy.array(differences, dtype=float)
    if not len(values):
        return None
    if set(values.tolist()) <= {-1.0, 0.0, 1.0}:
        return _resolvable_share(len(values), float(abs(values).mean()), confidence)
    if len(values) < 2:
        return None
    quantiles = norm.ppf((1 + confidence) / 2) + norm.ppf(POWER)
    return round(float(quantiles * values.std(ddof=1) / math.sqrt(len(values))), DIGITS)


def _resolvable_share(rows: int, differing: float, confidence: float) -> float | None:
    """By bisection, as the power grows with the difference."""
    import numpy
    from scipy.stats import binom

    decided = numpy.arange(rows + 1)
    # the fewest and the most rows for one side that McNemar's test calls luck, of so many decided
    fewest = binom.ppf((1 - confidence) / 2, decided, 0.5)

    def power(difference: float) -> float:
        share = max(differing, difference)
        wins = (share + difference) / (2 * share)
        chances = binom.pmf(decided, rows, share)
        notices = binom.cdf(fewest - 1, decided, wins) + binom.sf(decided - fewest, decided, wins)
        return float((chances * notices).sum())

    if power(1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return round(high, 4)


def _quotient(
    over: Sequence[float], under: Sequence[float], confidence: float, seed: int
) -> tuple[float, ...]:
    """The sum of one number of each row over the sum of another, with its interval."""
    import numpy

    above, below = numpy.array(over, dtype=float), numpy.array(under, dtype=float)
    if not len(above):
        raise ValueError("no rows, of which there is no estimate")
    if not numpy.isfinite(above).all() or not below.all():
        return math.nan, math.nan, math.nan
    value = above.sum() / below.sum()
    # how far each row is from what the quotient says it should be: zero in sum
    rest = above - value * below
    differing = len(rest) - numpy.unique(rest, return_counts=True)[1].max()
    outcomes = (below == 1).all() and numpy.isin(above, (-1, 0, 1)).all()
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if outcomes or differing < DIFFERING:
        columns = numpy.stack([rest, below], axis=1)[:, : 1 if (below == 1).all() else 2]
        sums = numpy.concatenate(list(_resampled(columns, seed)))
        totals = sums[:, 1] if sums.shape[1] > 1 else float(len(rest))
        low, high = value + numpy.quantile(sums[:, 0] / totals, tails)
        return value, low, high
    columns = numpy.stack([rest, below, rest * rest, rest * below, below * below], axis=1)
    sums = numpy.concatenate(list(_resampled(columns, seed)))
    moves = sums[:, 0] / sums[:, 1]
    squares = sums[:, 2] - 2 * moves * sums[:, 3] + moves * moves * sums[:, 4]
    spreads = numpy.sqrt(numpy.maximum(squares, 0)) / sums[:, 1]
    with numpy.errstate(all="ignore"):
        scaled = numpy.where(moves == 0, 0, moves / spreads)
    spread = math.sqrt(columns[:, 2].sum()) / below.sum()
    high, low = value - spread * numpy.quantile(scaled, tails)
    return value, low, high


def bootstrap(
    columns: Floats,
    measures: Mapping[str, Callable[[Floats], Floats]],
    confidence: float,
    seed: int,
) -> dict[str, Estimate]:
    """Metrics of sums over rows, with percentile bootstrap intervals from the same samples.

    Args:
        columns: rows x numbers whose sums the metrics are functions of.
        measures: by name, each takes sums, samples x numbers, and gives a number a sample.

    Returns:
        by name; NOT_MEASURED where a metric is no number.

    Raises:
        ValueError: without rows.
    """
    import numpy

    if not len(columns):
        raise ValueError("no rows, of which there is no estimate")
    whole = columns.sum(axis=0, keepdims=True)
    sums = numpy.concatenate(list(_resampled(columns, seed)))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {
        name: _rounded((measure(whole)[0], *numpy.quantile(measure(sums), tails)))
        for name, measure in measures.items()
    }


def _resampled(columns: Floats, seed: int) -> Iterator[Floats]:
    """Sums over as many rows as there are, drawn with replacement: samples x numbers."""
    import numpy

    rows, width = columns.shape
    generator = numpy.random.default_rng(seed)
    for count in _blocks(RESAMPLES, rows):
        drawn = generator.integers(
            rows, size=(count, rows), dtype=numpy.uint16 if rows <= 2**16 else numpy.int64
        )
        if width == 1:
            yield columns[:, 0][drawn].sum(axis=1, keepdims=True)
        else:  # how often each row was drawn, so that no samples x rows x numbers are in memory
            places = drawn + numpy.arange(count)[:, None] * rows
            times = numpy.bincount(places.ravel(), minlength=count * rows)
            yield times.reshape(count, rows).astype(float) @ columns


def _blocks(samples: int, rows: int) -> Iterator[int]:
    """Samples in blocks of at most _AT_ONCE rows."""
    size = max(1, _AT_ONCE // rows)
    for start in range(0, samples, size):
        yield min(size, samples - start)


def _rounded(numbers: tuple[float, ...]) -> Estimate:
    if not all(map(math.isfinite, numbers)):
        return NOT_MEASURED
    return _estimate(*numbers)


def _estimate(value: float, low: float, high: float) -> Estimate:
    return {
        # without the sign of a zero
        "value": round(float(value), DIGITS) + 0.0,
        "low": round(float(low), DIGITS) + 0.0,
        "high": round(float(high), DIGITS) + 0.0,
    }
