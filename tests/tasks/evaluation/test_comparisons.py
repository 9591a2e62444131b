"""Two candidates on the same rows."""

from __future__ import annotations

import json
import math

import pytest

from tasks.evaluation import comparisons
from tasks.evaluation.comparisons import Comparison, best_simpler, compare


def found(left: list[float], right: list[float]) -> Comparison:
    comparison = compare("dpo", "base", "exact_match", "test", left, right, 0.95, 1)
    assert comparison is not None
    json.dumps(comparison, allow_nan=False)
    return comparison


def test_better() -> None:
    one = found([1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40)
    assert (one["left"], one["right"], one["metric"], one["split"]) == (
        "dpo",
        "base",
        "exact_match",
        "test",
    )
    assert (one["rows"], one["left_value"], one["right_value"]) == (100, 0.9, 0.6)
    assert (one["left_only"], one["right_only"]) == (30, 0)
    assert one["difference"]["value"] == 0.3
    assert 0 < one["difference"]["low"] < 0.3 < one["difference"]["high"]
    assert one["p_value"] < 1e-6
    assert one["says"] == "better"


def test_worse() -> None:
    assert found([0.0] * 30 + [1.0] * 70, [1.0] * 100)["says"] == "worse"


def test_a_difference_inside_the_noise_is_called_that() -> None:
    one = found([1.0] * 8 + [0.0] * 6 + [1.0] * 86, [0.0] * 8 + [1.0] * 6 + [1.0] * 86)
    assert one["difference"]["value"] == 0.02
    assert one["difference"]["low"] < 0 < one["difference"]["high"]
    assert one["resolvable"] > 0.02
    assert one["says"] == "inside the noise"


def test_an_interval_alone_does_not_make_five_rows_a_proof() -> None:
    one = found([1.0] * 100, [0.0] * 5 + [1.0] * 95)
    assert (one["left_only"], one["right_only"], one["p_value"]) == (5, 0, 0.0625)
    assert one["says"] == "inside the noise"


def test_the_same_answers_are_no_proof_of_equality() -> None:
    """Ten rows answered alike leave room for more than a quarter of all rows."""
    few = found([1.0] * 10, [1.0] * 10)
    assert few["difference"] == {"value": 0.0, "low": -0.277533, "high": 0.277533}
    many = found([1.0] * 1000, [1.0] * 1000)
    assert many["difference"]["low"] == -0.003827
    assert many["says"] == few["says"] == "inside the noise"


def test_numbers_that_are_no_outcomes_have_no_p_value() -> None:
    left = [0.1 * (n % 10) for n in range(60)]
    one = found([value + 0.1 for value in left], left)
    assert (one["p_value"], one["left_only"], one["right_only"]) == (None, None, None)
    assert one["says"] == "better"


def test_rows_that_a_metric_does_not_speak_of() -> None:
    one = found([1.0, math.nan, 0.0], [1.0, math.nan, 1.0])
    assert (one["rows"], one["left_value"], one["right_value"]) == (2, 0.5, 1.0)


def test_nothing_to_compare_on() -> None:
    assert compare("a", "b", "m", "test", [], [], 0.95, 1) is None
    assert compare("a", "b", "m", "test", [math.nan], [math.nan], 0.95, 1) is None


def test_one_row() -> None:
    one = found([1.0], [0.0])
    assert (one["difference"]["value"], one["says"]) == (1.0, "inside the noise")
    assert one["resolvable"] is None


def test_other_rows() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare("a", "b", "m", "test", [1.0, 0.0], [1.0], 0.95, 1)


def test_the_best_simpler_method() -> None:
    def scores(**values: float | None) -> dict[str, object]:
        return {name: {"test": {"accuracy": {"value": value}}} for name, value in values.items()}

    assert best_simpler(scores(base=0.2, classical=0.9, dpo=0.95), "accuracy") == "classical"
    assert best_simpler(scores(base=0.2, base_few_shot=0.2), "accuracy") == "base"
    assert best_simpler(scores(base=None, classical=0.1), "accuracy") == "classical"
    assert best_simpler(scores(base=0.2), "rouge_l") is None
    assert best_simpler(scores(dpo=0.2), "accuracy") is None
    assert set(comparisons.SIMPLER) == {"base", "base_few_shot", "base_retrieval", "classical"}
