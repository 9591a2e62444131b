"""The verdict, each gate failing and passing on made-up metrics."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tasks.evaluation import gates
from tasks.params import Gates

METRICS = {"json_valid": 0.99, "exact_match": 0.8}


def limits(**changes: Any) -> Gates:
    none = {"max_perplexity_ratio": None, "max_following_drop": None}
    values = {"metrics": {}, "simpler": None, "champion": None, "forgetting": none}
    return Gates.model_validate(values | changes)


def estimate(value: float | None, low: float | None = 0.0) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": 1.0}


def document(**changes: Any) -> dict[str, Any]:
    """A tuned model at 0.9 against 0.0 of the base and 0.92 of a classical method."""
    scores = {"base": 0.0, "classical": 0.92, "champion": 0.9, "dpo": 0.9}
    return {
        "task": "structured",
        "primary": "exact_match",
        "final": "dpo",
        "candidates": {
            name: {"test": {"exact_match": estimate(value), "json_valid": estimate(1.0)}}
            for name, value in scores.items()
        },
        "comparisons": {
            "simpler": comparison("classical", 0.92, -0.05),
            "champion": comparison("champion", 0.9, -0.01),
        },
        "forgetting": {
            "rows": 200,
            "perplexity_ratio": estimate(1.2),
            "following": {
                "metric": "rouge_l",
                "base": estimate(0.5),
                "final": estimate(0.47),
                "difference": estimate(-0.03),
            },
        },
        **changes,
    }


def comparison(right: str, value: float, low: float | None) -> dict[str, Any]:
    return {
        "left": "dpo",
        "right": right,
        "metric": "exact_match",
        "split": "test",
        "rows": 284,
        "left_value": 0.9,
        "right_value": value,
        "difference": estimate(round(0.9 - value, 6), low),
    }


def one(found: dict[str, Any], **changes: Any) -> gates.Gate:
    """The only gate of a verdict, which must decide it."""
    verdict = gates.judge(found, limits(**changes))
    (gate,) = verdict["gates"]
    assert verdict["verdict"] == ("pass" if gate["passed"] else "fail")
    json.dumps(verdict, allow_nan=False)
    return gate


def measured(**values: Any) -> dict[str, Any]:
    return document(candidates={"dpo": {"test": {k: estimate(v) for k, v in values.items()}}})


def test_all_gates_hold() -> None:
    found = gates.judge(
        document(),
        limits(
            metrics=METRICS,
            simpler={"require": "not_worse", "margin": 0.1},
            champion={"require": "not_worse", "margin": 0.02},
            forgetting={"max_perplexity_ratio": 1.5, "max_following_drop": 0.05},
        ),
    )
    assert (found["verdict"], found["candidate"]) == ("pass", "dpo")
    assert [(gate["gate"], gate["why"]) for gate in found["gates"]] == [
        ("metric", "1 is at least 0.99"),
        ("metric", "0.9 is at least 0.8"),
        (
            "simpler",
            "dpo has exact_match 0.9, classical 0.92: the difference is -0.02, and its interval "
            "begins at -0.05, not below the margin of -0.1",
        ),
        (
            "champion",
            "dpo has exact_match 0.9, champion 0.9: the difference is 0, and its interval begins at "
            "-0.01, not below the margin of -0.02",
        ),
        ("forgetting", "1.2 times the base model's perplexity is at most 1.5"),
        ("forgetting", "0.03 lost of the base model's rouge_l of 0.5 is at most 0.05"),
    ]


def test_one_gate_fails_all() -> None:
    found = gates.judge(measured(json_valid=1.0, exact_match=0.79), limits(metrics=METRICS))
    assert found["verdict"] == "fail"
    assert found["gates"][1] == {
        "gate": "metric",
        "metric": "exact_match",
        "split": "test",
        "value": 0.79,
        "limit": 0.8,
        "passed": False,
        "why": "0.79 is below 0.8",
    }


def test_no_gates_pass() -> None:
    assert gates.judge(document(), limits()) == {
        "candidate": "dpo",
        "verdict": "pass",
        "contaminated_share": {"value": None, "low": None, "high": None},
        "gates": [],
    }


@pytest.mark.parametrize(
    ("metric", "value", "limit", "why"),
    [
        ("json_valid", 0.989999, 0.99, "0.989999 is below 0.99"),
        ("perplexity", 2.5, 2, "2.5 is above 2"),
        ("contaminated_share", 0.02, 0.01, "0.02 is above 0.01"),
        ("json_valid", math.nan, 0.99, "json_valid is nan, which is not a number to compare"),
        ("perplexity", -math.inf, 2, "perplexity is -inf, which is not a number to compare"),
        ("json_valid", True, 0.99, "json_valid is True, which is not a number to compare"),
        ("json_valid", "1", 0.99, "json_valid is 1, which is not a number to compare"),
        ("f1", None, 0.5, "f1 is not measured on test; measured are exact_match"),
    ],
)
def test_a_metric_fails(metric: str, value: Any, limit: float, why: str) -> None:
    gate = one(measured(**{"exact_match": 1.0, metric: value}), metrics={metric: limit})
    assert (gate["passed"], gate["why"]) == (False, why)


@pytest.mark.parametrize(
    ("metric", "value", "limit"),
    [("json_valid", 0.99, 0.99), ("perplexity", 2, 2), ("contaminated_share", 0.0, 0.01)],
)
def test_a_metric_passes(metric: str, value: float, limit: float) -> None:
    assert one(measured(**{metric: value}), metrics={metric: limit})["passed"]


@pytest.mark.parametrize("broken", [{}, {"dpo": {}}, {"dpo": {"test": None}}, None])
def test_nothing_measured_fails(broken: Any) -> None:
    gate = one(document(candidates=broken), metrics={"json_valid": 0.5})
    assert gate["why"] == "json_valid is not measured on test; measured are none"


def test_contamination_stands_beside_the_verdict() -> None:
    found = gates.judge(measured(contaminated_share=0.01), limits())
    assert found["contaminated_share"]["value"] == 0.01


@pytest.mark.parametrize(
    ("require", "margin", "low", "passed", "end"),
    [
        ("better", 0.1, 0.001, True, "begins at 0.001, above 0"),
        ("better", 0.1, 0.0, False, "begins at 0, not above 0"),
        ("not_worse", 0.0, 0.0, True, "begins at 0, not below 0"),
        ("not_worse", 0.0, -0.001, False, "begins at -0.001, below 0"),
        ("not_worse", 0.02, -0.02, True, "begins at -0.02, not below the margin of -0.02"),
        ("not_worse", 0.02, -0.021, False, "begins at -0.021, below the margin of -0.02"),
    ],
)
@pytest.mark.parametrize("against", ["simpler", "champion"])
def test_a_comparison(
    against: str, require: str, margin: float, low: float, passed: bool, end: str
) -> None:
    other, value = {"simpler": ("classical", 0.92), "champion": ("champion", 0.9)}[against]
    found = document(comparisons={against: comparison(other, value, low)})
    gate = one(found, **{against: {"require": require, "margin": margin}})
    assert (gate["gate"], gate["passed"], gate["low"]) == (against, passed, low)
    assert gate["limit"] == (0 if require == "better" else -margin)
    assert gate["why"].endswith(end)


SIMPLER = {"simpler": {"require": "not_worse", "margin": 1.0}}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (document(comparisons={"simpler": None}), "dpo is not compared with classical"),
        (document(comparisons=None), "dpo is not compared with classical"),
        (
            document(comparisons={"simpler": comparison("classical", 0.92, None)}),
            "the difference of dpo and classical in exact_match is not measured",
        ),
        (
            document(comparisons={"simpler": comparison("classical", 0.92, math.nan)}),
            "the difference of dpo and classical in exact_match is not measured",
        ),
        (  # against a method that does worse than another
            document(comparisons={"simpler": comparison("base", 0.0, 0.85)}),
            "the comparison has right base, but must have classical",
        ),
        (
            document(primary="json_valid"),
            "the comparison has right classical, but must have base",
        ),
        (
            document(candidates={"dpo": {}}),
            "no simpler method has exact_match on the test to compare dpo with",
        ),
    ],
)
def test_a_comparison_that_is_missing_or_another_fails(found: dict[str, Any], why: str) -> None:
    gate = one(found, **SIMPLER)
    assert (gate["passed"], gate["why"]) == (False, why)


def test_a_champion_is_compared_with_where_there_is_one() -> None:
    champion = {"champion": {"require": "better", "margin": 0.0}}
    without = document(comparisons={"champion": None})
    assert one(without, **champion)["why"] == "dpo is not compared with champion"
    del without["candidates"]["champion"]
    assert gates.judge(without, limits(**champion))["gates"] == []


@pytest.mark.parametrize(
    ("limit", "value", "passed", "why"),
    [
        (
            "max_perplexity_ratio",
            82.4,
            False,
            "82.4 times the base model's perplexity is above 1.5",
        ),
        ("max_perplexity_ratio", 1.5, True, "1.5 times the base model's perplexity is at most 1.5"),
        (
            "max_perplexity_ratio",
            None,
            False,
            "there is no measured forgetting: give ingest.sources",
        ),
        ("max_perplexity_ratio", math.nan, False, "perplexity_ratio is nan, which is not a number"),
        (
            "max_following_drop",
            -0.06,
            False,
            "0.06 lost of the base model's rouge_l of 0.5 is above",
        ),
        (
            "max_following_drop",
            -0.05,
            True,
            "0.05 lost of the base model's rouge_l of 0.5 is at most",
        ),
        (
            "max_following_drop",
            0.3,
            True,
            "-0.3 lost of the base model's rouge_l of 0.5 is at most",
        ),
        ("max_following_drop", None, False, "there is no measured forgetting: give ingest.sources"),
    ],
)
def test_forgetting(limit: str, value: float | None, passed: bool, why: str) -> None:
    found = document()
    key = {"max_perplexity_ratio": "perplexity_ratio", "max_following_drop": "following"}[limit]
    if limit == "max_following_drop":
        found["forgetting"][key]["difference"] = estimate(value)
    else:
        found["forgetting"][key] = estimate(value)
    values = {"max_perplexity_ratio": None, "max_following_drop": None}
    bound = 1.5 if limit == "max_perplexity_ratio" else 0.05
    gate = one(found, forgetting={**values, limit: bound})
    assert (gate["gate"], gate["split"], gate["passed"]) == ("forgetting", "regression", passed)
    assert gate["why"].startswith(why)


def test_no_regression_rows_fail_a_limit_on_forgetting() -> None:
    values = {"max_perplexity_ratio": None, "max_following_drop": 0.05}
    assert not one(document(forgetting=None), forgetting=values)["passed"]


def test_a_base_model_that_follows_nothing_has_nothing_to_lose() -> None:
    found = document()
    found["forgetting"]["following"] |= {"base": estimate(0.0), "difference": estimate(0.0)}
    values = {"max_perplexity_ratio": None, "max_following_drop": 0.05}
    assert one(found, forgetting=values)["why"] == (
        "0 lost of a base model whose rouge_l is 0, so could not fail, is at most 0.05"
    )
