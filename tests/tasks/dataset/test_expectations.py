"""Which expectations a suite has, and what its frame is."""

import numpy as np
import pandas as pd
import pytest

from tasks.dataset import checklist, expectations
from tasks.params import Params

LENGTHS = {"shortest_prompt", "longest_prompt", "shortest_answer", "longest_answer"}
COLUMNS = {"row", "personal_data", *LENGTHS, "valid_answer", "commonest_answer"}


@pytest.mark.parametrize(
    ("suite", "without"),
    [
        ("chat-train", set()),
        ("chat-test", {"commonest_answer"}),
        ("preference", {"commonest_answer"}),
        ("chat-general", {"commonest_answer", "valid_answer"}),
        ("chat-regression", {"commonest_answer", "valid_answer"}),
        ("chat-benchmark", {"commonest_answer", "valid_answer", *LENGTHS}),
    ],
)
def test_what_is_expected_depends_on_the_role(
    params: Params, suite: str, without: set[str]
) -> None:
    rows = pd.DataFrame({name: [1] for name in COLUMNS})
    rules = expectations.rules(suite, rows, params.validate_)
    assert {rule.column for rule in rules} == {None, *COLUMNS} - without


@pytest.mark.parametrize(("suite", "low"), [("chat-train", 200), ("chat-test", 1), ("text", 1)])
def test_a_frame_without_rows_is_judged_by_their_number_alone(
    params: Params, suite: str, low: int
) -> None:
    (rule,) = expectations.rules(suite, pd.DataFrame({"row": []}), params.validate_)
    assert (rule.type, rule.low) == (expectations.ROWS, low)


def test_the_frame_tells_the_commonest_answer_and_no_other() -> None:
    table = {"row": np.array([1, 2, 3]), "answer": np.array([7, 9, 9])}
    frame = expectations.frame(table)
    assert list(frame) == ["row", "commonest_answer"]
    assert frame["commonest_answer"].tolist() == [0, 1, 1]


def test_each_reason_may_take_its_share_of_the_rows_that_came_in(params: Params) -> None:
    assert expectations.reject_rules({"text personal_data": 0.2}, params.validate_) == [
        expectations.Rule(expectations.MEAN, "text personal_data", None, 0.05, "max_reject_share")
    ]


def test_a_score_that_is_not_judged_is_not_expected() -> None:
    scores = [checklist.Score("length", None, 0.9), checklist.Score("clusters", 1.0, 0.5)]
    assert expectations.score_rules(scores) == [
        expectations.Rule(expectations.MEAN, "clusters", 0.5, None, "min_score.clusters")
    ]
