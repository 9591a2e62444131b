"""Intervals and tests against published or independently computed values."""

import math
from collections.abc import Callable

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


def test_a_mean_of_many_numbers_follows_their_skew() -> None:
    """A few large values draw the interval to their side; the percentile one is symmetric here."""
    values = [0.02 * (n % 10) for n in range(90)] + [1.0] * 10
    found = statistics.mean(values, 0.95, 1)
    assert found["high"] - found["value"] > 1.1 * (found["value"] - found["low"])


def test_paired_differences() -> None:
    left, right = [1.0] * 20 + [0.0] * 12 + [1.0] * 68, [0.0] * 20 + [1.0] * 12 + [1.0] * 68
    found = statistics.paired_difference(left, right, 0.95, 1)
    assert found["value"] == 0.08
    # z times the standard deviation of a mean of 20 ones, 12 minus ones and 68 zeros
    spread = 1.96 * math.sqrt((0.32 - 0.08**2) / 100)
    assert found["low"] == pytest.approx(0.08 - spread, abs=0.011)
    assert found["high"] == pytest.approx(0.08 + spread, abs=0.011)
    turned = statistics.paired_difference(right, left, 0.95, 1)
    assert turned["value"] == -0.08
    assert statistics.paired_difference(left, right, 0.95, 1) == found


@pytest.mark.parametrize(
    ("won", "lost", "rows", "low", "high"),
    [
        # without a row that differs: z squared over rows and z squared, as Wilson's of no hit
        (0, 0, 50, -0.071347, 0.071347),
        (1, 0, 20, -0.119181, 0.236131),
        (5, 0, 30, 0.034234, 0.335643),
    ],
)
def test_nearly_equal_answers_are_no_proof(
    won: int, lost: int, rows: int, low: float, high: float
) -> None:
    left = [1.0] * won + [0.0] * lost + [1.0] * (rows - won - lost)
    right = [0.0] * won + [1.0] * lost + [1.0] * (rows - won - lost)
    found = statistics.paired_difference(left, right, 0.95, 1)
    assert (found["low"], found["high"]) == (
        pytest.approx(low, abs=2e-5),
        pytest.approx(high, abs=2e-5),
    )


@pytest.mark.parametrize(("won", "lost", "rows"), [(9, 3, 50), (1, 0, 20), (0, 7, 284)])
def test_tango(won: int, lost: int, rows: int) -> None:
    """At each bound the score statistic is the quantile, with the likeliest share of rows lost found
    by trying them all (Tango 1998, Statistics in Medicine 17)."""
    for bound in statistics._tango(won, lost, rows, 0.95):

        def likelihood(losing: float, bound: float = bound) -> float:
            winning, same = losing + bound, 1 - 2 * losing - bound
            if min(winning, losing, same) <= 0:
                return -math.inf
            logs = math.log(winning), math.log(losing), math.log(same)
            return won * logs[0] + lost * logs[1] + (rows - won - lost) * logs[2]

        losing = max((n / 100_000 for n in range(50_000)), key=likelihood)
        variance = rows * (2 * losing + bound * (1 - bound))
        assert abs(won - lost - rows * bound) / math.sqrt(variance) == pytest.approx(1.96, abs=3e-3)


@pytest.mark.parametrize(("won", "lost", "rows"), [(1, 0, 1), (0, 3, 3), (2, 2, 4), (0, 0, 1)])
def test_tango_of_a_handful_of_rows(won: int, lost: int, rows: int) -> None:
    low, high = statistics._tango(won, lost, rows, 0.95)
    assert -1 <= low < (won - lost) / rows + 1e-9
    assert (won - lost) / rows - 1e-9 < high <= 1


def test_a_ratio_of_perplexities() -> None:
    before = [3.0 + n % 5 for n in range(80)]
    after = [value + 0.5 + 0.1 * (n % 9) for n, value in enumerate(before)]
    found = statistics.ratio(after, before, [2] * 80, 0.95, 1)
    total = sum(after) - sum(before)
    assert found["value"] == round(math.exp(total / 160), 6)
    assert found["low"] < found["value"] < found["high"]
    assert statistics.ratio(before, before, [2] * 80, 0.95, 1) == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
    }


@pytest.mark.parametrize("measure", [statistics.mean, statistics.average])
def test_no_rows_no_estimate(measure: Callable[..., object]) -> None:
    with pytest.raises(ValueError):
        measure([], 0.95, 1)


def test_what_is_no_number_is_not_measured() -> None:
    assert statistics.mean([1.0, math.nan], 0.95, 1) == statistics.NOT_MEASURED
    assert statistics.perplexity([1.0], [0], 0.95, 1) == statistics.NOT_MEASURED
    assert statistics.perplexity([1e9], [1], 0.95, 1) == statistics.NOT_MEASURED


def test_holm() -> None:
    """Holm 1979: the smallest times their number, the next times one less, never falling."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([0.02]) == [0.02]
    assert statistics.holm([]) == []


def test_sign_flips() -> None:
    """Ten differences of one sign: 2 in 2 ** 10, as the exact test has it."""
    assert statistics.sign_flips([0.1 * n for n in range(1, 11)], 1) == pytest.approx(
        2 / 1024, abs=1e-3
    )
    assert statistics.sign_flips([0.5, -0.5, 0.0], 1) == 1.0
    assert statistics.sign_flips([0.0, 0.0], 1) == 1.0
    assert statistics.sign_flips([], 1) == 1.0
    many = [0.1, -0.2, 0.3, 0.05] * 500
    assert statistics.sign_flips(many, 1) == statistics.sign_flips(many, 1)


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_the_smallest_difference_that_is_resolved(rows: int) -> None:
    """Simulated: McNemar's test notices it in four of five tests."""
    import numpy

    differing = [1.0] * (rows // 20) + [-1.0] * (rows // 20)
    found = statistics.smallest_resolvable(differing + [0.0] * (rows - len(differing)), 0.95)
    assert found is not None
    share = max(0.1, found)
    generator = numpy.random.default_rng(1)
    chances = [(share + found) / 2, (share - found) / 2, 1 - share]
    noticed = 0
    for won, lost, _ in generator.multinomial(rows, chances, size=1000).tolist():
        noticed += (
            statistics.mcnemar([True] * won + [False] * lost, [False] * won + [True] * lost)[2]
            <= 0.05
        )
    assert noticed / 1000 == pytest.approx(statistics.POWER, abs=0.04)


def test_what_a_test_set_cannot_resolve() -> None:
    assert statistics.smallest_resolvable([], 0.95) is None
    assert statistics.smallest_resolvable([0.0] * 4, 0.95) is None  # four rows prove nothing
    assert statistics.smallest_resolvable([0.3], 0.95) is None
    few = statistics.smallest_resolvable([0.0] * 20, 0.95)
    many = statistics.smallest_resolvable([0.0] * 2000, 0.95)
    assert 0.3 < few < 0.4
    assert 0.003 < many < 0.005
    # numbers: (1.96 + 0.84) standard deviations of the mean
    values = [0.1, -0.1] * 50
    assert statistics.smallest_resolvable(values, 0.95) == pytest.approx(0.02816, abs=1e-4)


def test_intervals_hold_the_truth() -> None:
    """A short form of benchmarks/intervals.py: 300 test sets, whose count varies by 1.3 in 100."""
    import numpy

    generator = numpy.random.default_rng(3)
    runs, held = 300, {"difference": 0, "ratio": 0}
    for run in range(runs):
        won, lost = generator.uniform(0.02, 0.1, size=2)
        kinds = generator.choice(3, size=100, p=[won, lost, 1 - won - lost])
        left, right = (kinds != 1).astype(float), (kinds != 0).astype(float)
        found = statistics.paired_difference(left.tolist(), right.tolist(), 0.95, run)
        held["difference"] += found["low"] <= won - lost <= found["high"]
        tokens = generator.integers(2, 61, size=100)
        lost_nats = (generator.gamma(1.5, 0.5, size=100) - 0.25) * tokens
        found = statistics.ratio(lost_nats.tolist(), [0.0] * 100, tokens.tolist(), 0.95, run)
        held["ratio"] += found["low"] <= math.exp(0.5) <= found["high"]
    assert all(0.92 <= count / runs <= 0.98 for count in held.values()), held


def test_memory_does_not_grow_with_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.01 * (n % 90) for n in range(500)]
    once = statistics.mean(values, 0.95, 1)
    monkeypatch.setattr(statistics, "_AT_ONCE", 500 * 7)
    again = statistics.mean(values, 0.95, 1)
    assert again["value"] == once["value"]
    assert again["low"] == pytest.approx(once["low"], abs=0.003)
