"""Which task a test is of."""

import json

import pytest

from tasks.evaluation import task


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([json.dumps({"n": n}) for n in range(9)], "structured"),
        ([*(json.dumps({"n": n}) for n in range(9)), "none of these"], "structured"),
        ([*(json.dumps({"n": n}) for n in range(8)), "text", "more text"], "generation"),
        (["yes", "no ", " yes", "no"], "classification"),
        (["yes"] * 9, "classification"),
        ([f"intent_{n % 77}" for n in range(200)], "classification"),
        (["42", "42", "7", "7"], "classification"),
        (["отправлено", "получено"] * 4, "classification"),
        ([f"a story of its own, number {n}" for n in range(9)], "generation"),
        (["the same long text, which is no label, is given to each of the rows"] * 9, "generation"),
        (["a\nb"] * 9, "generation"),
        ([f"label {n // 2}" for n in range(1000)], "generation"),
        (["one"], "generation"),
        ([], "generation"),
    ],
)
def test_detect(expected: list[str], found: str) -> None:
    assert task.detect(expected) == found


def test_what_decides() -> None:
    decides = {name: task.primary(name) for name in ("classification", "structured", "generation")}
    assert decides == {
        "classification": "accuracy",
        "structured": "exact_match",
        "generation": "rouge_l",
    }
