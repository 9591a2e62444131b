"""How sure a number is, given how few rows it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

DIGITS = 6
"""Numbers are rounded, so that the last bits of a platform's arithmetic do not reach an output."""
RESAMPLES = 2000


class Estimate(TypedDict):
    """A metric with its confidence interval; None for what could not be measured."""

    value: float | None
    low: float | None
    high: float | None


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


def perplexity(
    nlls: Sequence[float], tokens: Sequence[int], confidence: float, seed: int
) -> Estimate:
    """exp of the mean negative log-likelihood a token, with a percentile bootstrap interval
    (Efron 1979) that draws whole rows, since the tokens of a row depend on one another.

    Args:
        nlls: nats, summed over each row.
        tokens: number of scored tokens of each row.
    """
    import numpy

    losses, counts = numpy.array(nlls), numpy.array(tokens)
    generator = numpy.random.default_rng(seed)
    drawn = generator.integers(len(losses), size=(RESAMPLES, len(losses)))
    means = losses[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = numpy.exp(numpy.quantile(means, [tail, 1 - tail]))
    return _estimate(math.exp(losses.sum() / counts.sum()), low, high)


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


def _estimate(value: float, low: float, high: float) -> Estimate:
    return {
        "value": round(float(value), DIGITS),
        "low": round(float(low), DIGITS),
        "high": round(float(high), DIGITS),
    }
