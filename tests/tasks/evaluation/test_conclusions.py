"""The sentences say what the numbers say."""

from typing import Any

import pytest

from tasks.evaluation import conclusions


def document(says: str, low: float | None, high: float | None) -> dict[str, Any]:
    value = None if low is None or high is None else round((low + high) / 2, 6)
    found = {
        "left": "dpo",
        "right": "base_retrieval",
        "metric": "rouge_l",
        "split": "test",
        "rows": 1200,
        "left_value": 0.5,
        "right_value": 0.5 - (value or 0),
        "difference": {"value": value, "low": low, "high": high},
        "left_only": None,
        "right_only": None,
        "p_value": None,
        "resolvable": None,
        "says": says,
    }
    return {"comparisons": {"simpler": found, "champion": None}, "forgetting": None}


@pytest.mark.parametrize(
    ("says", "low", "high", "short", "text"),
    [
        ("better", 0.1, 0.2, "Yes", "+0.150, 95% interval 0.100 to 0.200, all of it above zero."),
        (
            "worse",
            -0.2,
            -0.1,
            "No, worse",
            "-0.150, 95% interval -0.200 to -0.100, all of it below",
        ),
        (
            "inside the noise",
            -0.1,
            0.2,
            "Not shown: inside the noise",
            "which holds zero: these rows do not tell the two apart.",
        ),
        ("inside the noise", None, None, "Not measured", "on 1,200 rows of the test."),
    ],
)
def test_an_answer(says: str, low: float | None, high: float | None, short: str, text: str) -> None:
    answer = conclusions.against_simpler(document(says, low, high), 0.95)
    assert answer.short == short
    assert text in answer.text


def test_without_comparison_or_general_rows() -> None:
    nothing = {"comparisons": {"simpler": None, "champion": None}, "forgetting": None}
    assert conclusions.against_simpler(nothing, 0.95).short == "Not compared"
    assert conclusions.against_champion(nothing, 0.95).short == "Not compared"
    assert conclusions.forgotten(nothing, 0.95).short == "Not measured"


def test_no_slice_differs() -> None:
    slices = [{"name": "a", "kind": "class", "says": "inside the noise", "p_holm": 1.0}] * 3
    assert conclusions.sliced(slices) == "None of the 3 slices differs by more than noise."


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (0.9054, "0.905"), (45916.5, "45,916"), (2.5e7, "2.5e+07")],
)
def test_a_number(value: float | None, text: str) -> None:
    assert conclusions.number(value) == text
