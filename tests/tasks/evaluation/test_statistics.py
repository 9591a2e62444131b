"""Intervals and tests against published or independently computed values."""

import math

import pytest

from tasks.evaluation import statistics


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(hits: int, rows: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    found = statistics.share([True] * hits + [False] * (rows - hits), 0.95)
    assert found["value"] == round(hits / rows, 6)
    assert (round(found["low"], 4), round(found["high"], 4)) == (low, high)
    assert {type(number) for number in found.values()} == {float}


def test_mcnemar() -> None:
    # 10 pairs that differ, 8 to 2: two-sided binomial, 2 * (1 + 10 + 45) / 1024
    left = [True] * 8 + [False] * 2 + [True] * 5
    right = [False] * 8 + [True] * 2 + [True] * 5
    assert statistics.mcnemar(left, right) == (8, 2, 0.109375)
    assert statistics.mcnemar(right, left) == (2, 8, 0.109375)


def test_mcnemar_of_equal_answers() -> None:
    assert statistics.mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_mcnemar_needs_the_same_rows() -> None:
    with pytest.raises(ValueError, match="shorter"):
        statistics.mcnemar([True, False], [True])


def test_perplexity_weighs_tokens() -> None:
    found = statistics.perplexity([0.0, 3 * math.log(2)], [1, 3], 0.95, 1)
    assert found["value"] == round(2**0.75, 6)
    assert (found["low"], found["high"]) == (1.0, 2.0)  # a sample can hold one of the rows alone


def test_perplexity_of_equal_rows_is_certain() -> None:
    found = statistics.perplexity([2.0] * 9, [4] * 9, 0.95, 1)
    assert found["low"] == found["value"] == found["high"] == round(math.exp(0.5), 6)


def test_perplexity_depends_on_the_seed_alone() -> None:
    nlls, tokens = [float(n % 7) for n in range(50)], [3] * 50
    once = statistics.perplexity(nlls, tokens, 0.95, 1)
    assert once == statistics.perplexity(nlls, tokens, 0.95, 1)
    assert once != statistics.perplexity(nlls, tokens, 0.95, 2)
    assert once["low"] < once["value"] < once["high"]
