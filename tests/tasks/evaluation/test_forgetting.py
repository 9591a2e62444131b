"""What the final model lost, on made-up answers."""

from __future__ import annotations

import json
import math

import pytest

from tasks.evaluation import forgetting
from tasks.evaluation.forgetting import Forgetting, same_form
from tasks.evaluation.metrics import Answered

EXPECTED = [f"the answer to question number {n} is {n * n}" for n in range(60)]


def rows(
    answers: list[str], nll: float | None = 6.0, expected: list[str] = EXPECTED
) -> list[Answered]:
    return [
        Answered(right, answer, nll, 3) for right, answer in zip(expected, answers, strict=True)
    ]


def measured(base: list[Answered], final: list[Answered]) -> Forgetting:
    found = forgetting.measure(base, final, 0.95, 1)
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def test_nothing_forgotten() -> None:
    found = measured(rows(EXPECTED), rows(EXPECTED))
    assert found["rows"] == 60
    assert found["perplexity_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["following"]["metric"] == "rouge_l"
    assert found["following"]["difference"]["value"] == 0.0
    assert found["form"]["final"]["value"] == 1.0


def test_all_forgotten() -> None:
    label = '{"category":"delay"}'
    found = measured(rows(EXPECTED), rows([label] * 60, nll=12.0))
    assert found["perplexity_ratio"]["value"] == round(math.exp(2), 6)
    assert found["following"]["base"]["value"] == 1.0
    assert found["following"]["final"]["value"] == 0.0
    assert found["following"]["difference"]["value"] == -1.0
    assert found["following"]["difference"]["high"] > -0.9  # all alike prove no certainty
    assert found["form"]["difference"]["value"] == -1.0


def test_rows_of_another_task_are_measured_by_its_metric() -> None:
    labels = ["yes", "no"] * 30
    found = measured(rows(labels, expected=labels), rows(["yes"] * 60, expected=labels))
    assert found["following"]["metric"] == "accuracy"
    assert found["following"]["difference"]["value"] == -0.5


def test_no_rows() -> None:
    assert forgetting.measure([], [], 0.95, 1) is None


@pytest.mark.parametrize("nll", [None, math.nan, math.inf])
def test_no_likelihoods_no_ratio(nll: float | None) -> None:
    found = measured(rows(EXPECTED), rows(EXPECTED, nll=nll))
    assert found["perplexity_ratio"] == {"value": None, "low": None, "high": None}


def test_other_rows() -> None:
    with pytest.raises(ValueError, match="must answer the same rows, in the same order"):
        forgetting.measure(rows(EXPECTED), rows(EXPECTED)[1:], 0.95, 1)


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("blue", "green", True),
        ("It is green.", "green", True),
        ("The grass is green because of the chlorophyll in it", "green", False),
        ('{"category":"1-2d"}', "green", False),
        ("", "green", False),
        ("7", "12", True),
        ("seven", "12", False),
        ("12,5 %", "3.14", True),
        ("one\ntwo\nthree", "a\nb\nc", True),
        ("one two three", "a\nb\nc", False),
        ('{"a": 2}', '{"a": 1}', True),
        ('{"b": 2}', '{"a": 1}', False),
        ("[1]", "[2, 3]", True),
        ("[1]", '{"a": 1}', False),
        ("привет", "мир", True),
        ("x " * 50_000, "green", False),
    ],
)
def test_form(answer: str, expected: str, same: bool) -> None:
    assert same_form(answer, expected) is same
