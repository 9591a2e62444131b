"""A version's verdict, given again from its own numbers; a lie is named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tasks.evaluation import gates
from tasks.lineage.verify import _Fails, replayed
from tasks.params import Gates

SETTINGS: dict[str, Any] = {
    "champion": None,
    "gates": {
        "metrics": {"json_valid": 0.99, "exact_match": 0.8},
        "simpler": {"require": "not_worse", "margin": 0.1},
        "champion": None,
        "forgetting": {"max_perplexity_ratio": None, "max_following_drop": None},
    },
}
MEASURED: dict[str, Any] = {
    "task": "structured",
    "primary": "exact_match",
    "final": "dpo",
    "candidates": {
        "base": {"test": {"exact_match": {"value": 0.1, "low": 0.05, "high": 0.2}}},
        "dpo": {
            "test": {
                "exact_match": {"value": 0.9, "low": 0.85, "high": 0.95},
                "json_valid": {"value": 1.0, "low": 0.98, "high": 1.0},
            }
        },
    },
    "comparisons": {
        "simpler": {
            "left": "dpo",
            "right": "base",
            "metric": "exact_match",
            "split": "test",
            "left_value": 0.9,
            "right_value": 0.1,
            "difference": {"value": 0.8, "low": 0.75, "high": 0.85},
        },
        "champion": None,
    },
    "forgetting": None,
}


def decided() -> dict[str, Any]:
    verdict = gates.judge(MEASURED, Gates.model_validate(SETTINGS["gates"]), None)
    return json.loads(json.dumps(verdict))


def lie(document: dict[str, Any], *place: Any, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def why(verdict: dict[str, Any], measured: Any = MEASURED, settings: Any = SETTINGS) -> str:
    with pytest.raises(_Fails) as caught:
        replayed(verdict, measured, settings)
    return str(caught.value)


def test_a_true_verdict_holds_in_any_order() -> None:
    verdict = decided()
    told = replayed(verdict, MEASURED, SETTINGS)
    assert told.startswith(
        "pass: json_valid passes (1 is at least 0.99), exact_match passes (0.9 is"
    )
    verdict["gates"].reverse()
    assert replayed(verdict, MEASURED, SETTINGS) == told


def test_a_gate_that_was_turned_is_named() -> None:
    measured = lie(MEASURED, "candidates", "dpo", "test", "exact_match", "value", value=0.5)
    assert why(decided(), measured) == (
        "verdict.json says exact_match passes (0.9 is at least 0.8), but metrics and gates give "
        "exact_match fails (0.5 is below 0.8)"
    )


def test_a_comparison_that_was_turned_is_named() -> None:
    measured = lie(MEASURED, "comparisons", "simpler", "difference", "low", value=-0.2)
    assert "its interval begins at -0.2, below the margin of -0.1" in why(decided(), measured)


def test_a_verdict_that_was_turned_is_named() -> None:
    assert why(lie(decided(), "verdict", value="fail")) == (
        "verdict.json says verdict fail, but metrics and gates give verdict pass"
    )


def test_a_gate_that_was_left_out_is_named() -> None:
    verdict = decided()
    verdict["gates"] = verdict["gates"][1:]
    assert why(verdict) == (
        "verdict.json says 2 gates, but metrics and gates give json_valid passes (1 is at least 0.99)"
    )


def test_a_limit_that_was_lowered_is_named() -> None:
    settings = lie(SETTINGS, "gates", "metrics", "exact_match", value=0.95)
    assert "exact_match fails (0.9 is below 0.95)" in why(decided(), settings=settings)


def test_a_champion_that_was_not_measured_is_named() -> None:
    settings = lie(SETTINGS, "champion", value="a" * 64)
    assert why(decided(), settings=settings).endswith(
        "fails (evaluate.champion is aaaaaaaaaaaa, but nothing is compared with a champion)"
    )


def test_gates_of_another_form_are_not_guessed_at() -> None:
    settings = {"gates": {"exact_match": 0.8}}
    assert why(decided(), settings=settings).startswith(
        "the section evaluate.gates it was made with cannot be judged by here ("
    )
