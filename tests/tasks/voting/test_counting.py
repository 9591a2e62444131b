"""Win rates and agreement, against known values and against scikit-learn."""

from __future__ import annotations

import random

import pytest

from tasks.voting import counting


class TestWinRate:
    def test_without_ties_it_is_wilsons_interval(self) -> None:
        from scipy.stats import binomtest

        scores = [1.0] * 37 + [0.0] * 13
        found = counting.win_rate(scores, 0.95)
        known = binomtest(37, 50).proportion_ci(0.95, method="wilson")
        assert found["value"] == 0.74
        assert found["low"] == pytest.approx(known.low, abs=1e-6)
        assert found["high"] == pytest.approx(known.high, abs=1e-6)

    def test_a_few_wins_are_no_certainty(self) -> None:
        found = counting.win_rate([1.0] * 5, 0.95)
        assert (found["value"], found["high"]) == (1.0, 1.0)
        assert found["low"] == pytest.approx(0.5655, abs=1e-4)

    def test_ties_count_half(self) -> None:
        found = counting.win_rate([1.0, 0.0, 0.5, 0.5], 0.95)
        assert found["value"] == 0.5
        assert found["low"] < 0.5 < found["high"]

    def test_no_votes_no_rate(self) -> None:
        assert counting.win_rate([], 0.95) == {"value": None, "low": None, "high": None}

    def test_it_covers_the_truth_with_ties_too(self) -> None:
        chance = random.Random(1)
        hits = 0
        for _ in range(400):
            scores = chance.choices([1.0, 0.5, 0.0], [0.5, 0.3, 0.2], k=50)  # mean 0.65
            found = counting.win_rate(scores, 0.95)
            hits += found["low"] <= 0.65 <= found["high"]
        assert hits >= 0.94 * 400


class TestAgreement:
    def test_two_raters_agree_as_scikit_learn_has_it(self) -> None:
        from sklearn.metrics import cohen_kappa_score

        left = {str(row): score for row, score in enumerate([1, 1, 0, 0.5, 1, 0])}
        right = {str(row): score for row, score in enumerate([1, 0, 0, 0.5, 1, 1])} | {"x": 1}
        found = counting.between(left, right)
        known = cohen_kappa_score(list("110h10"), list("100h11"))
        assert (found.rows, found.share) == (6, pytest.approx(4 / 6, abs=1e-6))
        assert found.kappa == pytest.approx(known, abs=1e-6)

    def test_kappa_is_undefined_where_all_say_the_same(self) -> None:
        found = counting.between({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
        assert (found.share, found.kappa) == (1.0, None)
        assert str(found) == "100% of 2 comparisons, kappa undefined"

    def test_nothing_in_common(self) -> None:
        assert str(counting.between({"a": 1.0}, {"b": 1.0})) == "no row in common"
        assert counting.among({"ada": {"a": 1.0}}).share is None

    def test_among_several_people(self) -> None:
        votes = {
            "ada": {"a": 1.0, "b": 1.0, "c": 0.0},
            "bob": {"a": 1.0, "b": 0.0, "c": 0.0},
            "eve": {"a": 1.0},
        }
        found = counting.among(votes)
        assert (found.rows, found.share) == (5, 0.8)  # 3 pairs on a, one on b, one on c
        luck = (4 / 7) ** 2 + (3 / 7) ** 2
        assert found.kappa == pytest.approx((0.8 - luck) / (1 - luck), abs=1e-6)


def test_a_tally_counts_votes_and_rates_rows() -> None:
    votes = {"ada": {"a": 1.0, "b": 0.5}, "bob": {"a": 0.0}}
    found = counting.tally(votes, 0.95)
    assert (found.people, found.votes, found.rows) == (2, 3, 2)
    assert (found.won, found.lost, found.tied) == (1, 1, 1)
    assert found.win_rate["value"] == 0.5
    assert found.lines("dpo", "base")[0] == (
        "  2 people, 3 votes on 2 rows: dpo won 1, lost 1, tied 1 against base"
    )
