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
        (
            "inside the noise",
            0.011,
            0.112,
            "Not shown: inside the noise",
            "interval 0.011 to 0.112, which lies beside zero, but so few rows are right with one of "
            "the two alone that McNemar's test calls it luck",
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
    assert conclusions.against_champion(nothing, [], 0.95).short == "Not compared"
    assert conclusions.forgotten(nothing, 0.95).short == "Not measured"


def test_a_champion_without_a_gate_and_one_that_was_not_compared() -> None:
    found = document("better", 0.1, 0.2)["comparisons"]["simpler"]
    compared = {"comparisons": {"simpler": None, "champion": found}}
    gate = {"gate": "champion", "why": "evaluate.champion is f, but nothing is compared with it"}
    asked = "evaluate.gates.champion is null."
    assert conclusions.against_champion(compared, [], 0.95).text.endswith(asked)
    assert asked not in conclusions.against_champion(compared, [gate], 0.95).text
    nothing = {"comparisons": {"simpler": None, "champion": None}}
    text = conclusions.against_champion(nothing, [gate], 0.95).text
    assert text == "Evaluate.champion is f, but nothing is compared with it."


def test_the_champion_on_each_source() -> None:
    found = document("better", 0.1, 0.2)["comparisons"]["simpler"]
    parts = {"new.jsonl": found, "nothing.jsonl": None}
    compared = {"comparisons": {"champion": found}, "champion_by_source": parts}
    gate = {"gate": "champion"}
    text = conclusions.against_champion(compared, [gate], 0.95).text
    assert text.endswith(" By source: 0.500 against 0.350 on 1,200 rows of new.jsonl (better).")


def test_a_gate_that_cannot_fail_is_not_counted() -> None:
    gates = [{"passed": True}, {"passed": True, "could_fail": False}, {"passed": False}]
    assert [conclusions.result(gate) for gate in gates] == ["holds", "cannot fail here", "fails"]
    assert conclusions.gates_held(gates) == "1 of 3 hold, 1 cannot fail here"
    assert conclusions.gates_held(gates[:1]) == "1 of 1 hold"


def test_no_slice_differs() -> None:
    slices = [{"name": "a", "kind": "class", "says": "inside the noise", "p_holm": 1.0}] * 3
    assert conclusions.sliced(slices) == "None of the 3 slices differs by more than noise."


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not measured"), (0.9054, "0.905"), (45916.5, "45,916"), (2.5e7, "2.5e+07")],
)
def test_a_number(value: float | None, text: str) -> None:
    assert conclusions.number(value) == text
