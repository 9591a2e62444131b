"""The verdict, each gate failing and passing on made-up metrics."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
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
            "perplexity_ratio": {"value": 1.2, "low": 1.1, "high": 1.3},
            "following": {
                "metric": "rouge_l",
                "base": estimate(0.5),
                "final": estimate(0.47),
                "difference": estimate(-0.03, -0.04),
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
        "p_value": 0.01,
        "says": "better" if low is not None and low > 0 else "inside the noise",
    }


def one(found: dict[str, Any], **changes: Any) -> gates.Gate:
    """The only gate of a verdict, which must decide it."""
    verdict = gates.judge(found, limits(**changes), None)
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
        "f" * 64,
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
        (
            "forgetting",
            "1.2 times the base model's perplexity: the worse end of the interval, 1.3, is at most 1.5",
        ),
        (
            "forgetting",
            "0.03 lost of the base model's rouge_l of 0.5: the worse end of the interval, 0.04, is "
            "at most 0.05",
        ),
    ]


def test_one_gate_fails_all() -> None:
    found = gates.judge(measured(json_valid=1.0, exact_match=0.79), limits(metrics=METRICS), None)
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
    expected: gates.Verdict = {
        "candidate": "dpo",
        "verdict": "pass",
        "contaminated_share": {"value": None, "low": None, "high": None},
        "gates": [],
    }
    assert gates.judge(document(), limits(), None) == expected


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


@pytest.mark.parametrize("broken", [{}, {"dpo": {}}])
def test_nothing_measured_fails(broken: Any) -> None:
    gate = one(document(candidates=broken), metrics={"json_valid": 0.5})
    assert gate["why"] == "json_valid is not measured on test; measured are none"


def test_contamination_stands_beside_the_verdict() -> None:
    found = gates.judge(measured(contaminated_share=0.01), limits(), None)
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
    assert gates.judge(without, limits(**champion), None)["gates"] == []


def test_the_verdict_tells_the_champion_apart_by_source() -> None:
    assert "champion_by_source" not in gates.judge(document(), limits(), None)
    parts: dict[str, Any] = {"new.jsonl": comparison("champion", 0.1, 0.05), "old.jsonl": None}
    told = gates.judge(document(champion_by_source=parts), limits(), None)["champion_by_source"]
    assert told["new.jsonl"]["difference"] == parts["new.jsonl"]["difference"]
    assert told["old.jsonl"]["says"] == "not compared"


@pytest.mark.parametrize("asked", [None, {"require": "not_worse", "margin": 1.0}])
@pytest.mark.parametrize("gone", ["candidates", "comparisons"])
def test_a_champion_that_is_set_and_not_compared_with_fails(gone: str, asked: Any) -> None:
    found, settings = document(), limits(champion=asked)
    assert gates.judge(found, settings, "f" * 64)["verdict"] == "pass"
    del found[gone]["champion"]
    verdict = gates.judge(found, settings, "f" * 64)
    assert (verdict["verdict"], verdict["gates"][0]["why"]) == (
        "fail",
        "evaluate.champion is ffffffffffff, but nothing is compared with a champion",
    )


def test_better_needs_mcnemar_too() -> None:
    found = document()
    found["comparisons"]["simpler"] |= {
        "difference": {"value": 0.05, "low": 0.011, "high": 0.112},
        "says": "inside the noise",
        "p_value": 0.0625,
    }
    better = {"simpler": {"require": "better", "margin": 0.0}}
    gate = one(found, **better)
    assert not gate["passed"]
    assert gate["why"].endswith(
        "begins at 0.011, above 0, but McNemar's test calls that luck (p 0.0625): inside the noise"
    )
    del found["comparisons"]["simpler"]["says"]
    assert one(found, **better)["why"].endswith("but what the comparison says is missing")


EVERY = {
    "metrics": METRICS,
    "simpler": {"require": "not_worse", "margin": 0.1},
    "champion": {"require": "not_worse", "margin": 0.1},
    "forgetting": {"max_perplexity_ratio": 1.5, "max_following_drop": 0.05},
}


def places(of: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every place of a document."""
    yield above
    if isinstance(of, dict):
        for key, value in of.items():
            yield from places(value, (*above, key))


@pytest.mark.parametrize("value", [None, 5, -5, 10**400, math.nan, "x", [], [1], True, {}, "gone"])
def test_no_document_raises_and_a_broken_one_fails(value: Any) -> None:
    for place in places(document()):
        found: Any = copy.deepcopy(document())
        at = found
        for key in place[:-1]:
            at = at[key]
        if not place:
            found = value
        elif value == "gone":
            del at[place[-1]]
        else:
            at[place[-1]] = value
        verdict = gates.judge(found, limits(**EVERY), "f" * 64)
        json.dumps(verdict["gates"], allow_nan=False)
        assert all(gate["why"] for gate in verdict["gates"])
        mapping = len(place) <= 4 and place[:1] == ("candidates",) and value not in ({}, "gone")
        if mapping or place in ((), ("final",), ("primary",), ("comparisons",), ("forgetting",)):
            assert verdict["verdict"] == "fail", place


@pytest.mark.parametrize("place", ["base", "test", "metric"])
@pytest.mark.parametrize("value", [None, 5, "x", []])
def test_a_broken_candidate_says_where(place: str, value: Any) -> None:
    found = document()
    base = {"base": value, "test": {"test": value}, "metric": {"test": {"exact_match": value}}}
    found["candidates"]["base"] = base[place]
    gate = one(found)
    assert gate["why"].startswith("candidates.base")
    assert gate["why"].endswith("not a mapping")


@pytest.mark.parametrize(
    ("limit", "value", "worst", "passed", "why"),
    [
        (
            "max_perplexity_ratio",
            1.2,
            1.6,
            False,
            "perplexity: the worse end of the interval, 1.6, is",
        ),
        (
            "max_perplexity_ratio",
            1.4,
            1.5,
            True,
            "the worse end of the interval, 1.5, is at most 1.5",
        ),
        ("max_perplexity_ratio", 1.4, None, False, "without an interval to hold against 1.5"),
        ("max_perplexity_ratio", 1.6, 1.0, False, "the worse end of the interval, 1.6, is above"),
        ("max_perplexity_ratio", None, None, False, "there is no measured forgetting: give ingest"),
        (
            "max_perplexity_ratio",
            math.nan,
            1,
            False,
            "perplexity_ratio is nan, which is not a number",
        ),
        ("max_following_drop", -0.01, -0.06, False, "0.01 lost of the base model's rouge_l of 0.5"),
        ("max_following_drop", -0.04, -0.05, True, "interval, 0.05, is at most 0.05"),
        ("max_following_drop", 0.3, 0.2, True, "-0.3 lost of the base model's rouge_l of 0.5"),
        ("max_following_drop", None, None, False, "there is no measured forgetting: give ingest"),
    ],
)
def test_forgetting(
    limit: str, value: float | None, worst: float | None, passed: bool, why: str
) -> None:
    found = document()
    if limit == "max_following_drop":
        found["forgetting"]["following"]["difference"] = estimate(value, worst)
    else:
        found["forgetting"]["perplexity_ratio"] = {"value": value, "low": 1.0, "high": worst}
    values = {"max_perplexity_ratio": None, "max_following_drop": None}
    bound = 1.5 if limit == "max_perplexity_ratio" else 0.05
    gate = one(found, forgetting={**values, limit: bound})
    assert (gate["gate"], gate["split"], gate["passed"]) == ("forgetting", "regression", passed)
    assert why in gate["why"]
    assert "could_fail" not in gate


def test_no_regression_rows_fail_a_limit_on_forgetting() -> None:
    values = {"max_perplexity_ratio": None, "max_following_drop": 0.05}
    assert not one(document(forgetting=None), forgetting=values)["passed"]


def test_a_base_model_that_follows_nothing_has_nothing_to_lose() -> None:
    """As on the demo: the gate passes, and is no evidence."""
    found = document()
    base = {"value": 0.000625, "low": 0.0, "high": 0.002}
    found["forgetting"]["following"] |= {"base": base, "difference": estimate(-0.001, -0.028)}
    values = {"max_perplexity_ratio": None, "max_following_drop": 0.05}
    gate = one(found, forgetting=values)
    assert (gate["passed"], gate["could_fail"]) == (True, False)
    assert gate["why"] == (
        "0.001 lost of the base model's rouge_l of 0.000625: the worse end of the interval, 0.028, "
        "is at most 0.05; it cannot fail, since the base model has no more than that to lose"
    )
