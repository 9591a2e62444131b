"""Each gate of a promotion, failing and passing on made-up numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.lineage import promotion_gates
from tasks.lineage.promotion_gates import Asked, Facts, Gate
from tasks.params import Promote
from tasks.voting import counting

NOTHING: dict[str, Any] = {
    "reproduced": "identical",
    "votes": 0,
    "min_win_rate": None,
    "judge_min_win_rate": None,
    "max_latency_p95_seconds": None,
}
JUDGED: dict[str, Any] = {
    "answer": "judged",
    "why": None,
    "against": "base",
    "rubric_sha256": "r",
    "model": "m",
    "pairs": [{}, {}],
    "test_rows": 3,
    "same_answer": 1,
    "fixed_before_training": "yes",
    "win_rate": {"value": 0.7, "low": 0.6, "high": 0.8},
}


def held(asked: dict[str, Any], /, **facts: Any) -> Gate:
    known = {
        "reference": "a-candidates@1",
        "against": "base",
        "tally": counting.tally({}, 0.95),
        "judgements": [],
        "asked": Asked("m", "r", 100),
        "latency": None,
    }
    (gate,) = promotion_gates.judge(Facts(**{**known, **facts}), Promote(**{**NOTHING, **asked}))
    return gate


def voted(*scores: float) -> counting.Tally:
    return counting.tally({"ada": {str(at): score for at, score in enumerate(scores)}}, 0.95)


def test_nothing_is_asked_by_default() -> None:
    facts = Facts("a-candidates@1", None, counting.tally({}, 0.95), [], None, None)
    assert promotion_gates.judge(facts, Promote(**NOTHING)) == []


def test_votes() -> None:
    assert held({"votes": 2}, tally=voted(0, 0))["passed"]
    gate = held({"votes": 3}, tally=voted(1, 1))
    assert not gate["passed"]
    assert (gate["value"], gate["limit"]) == (2, 3)
    assert gate["why"] == "2 votes of people against base are fewer than 3"
    assert gate["remedy"] == "`tunetrail review export a-candidates@1`"


def test_the_win_rate_of_people_counts_with_its_lower_end() -> None:
    assert held({"min_win_rate": 0.5}, tally=voted(*[1.0] * 4))["passed"]
    gate = held({"min_win_rate": 0.5}, tally=voted(1, 1, 1, 0))
    assert not gate["passed"]
    assert gate["value"] == 0.75
    assert (
        gate["why"] == "a win rate of 0.750 against base, whose interval begins at 0.301, below 0.5"
    )
    gate = held({"min_win_rate": 0.0})
    assert (gate["passed"], gate["value"]) == (False, None)
    assert gate["why"] == "nobody has voted against base"


def test_the_win_rate_of_the_judge() -> None:
    assert held({"judge_min_win_rate": 0.6}, judgements=[JUDGED])["passed"]
    gate = held({"judge_min_win_rate": 0.61}, judgements=[JUDGED])
    assert (gate["passed"], gate["low"]) == (False, 0.6)
    assert gate["remedy"] == "a better model; asking the judge again changes nothing"


LOST = {**JUDGED, "win_rate": {"value": 0.3, "low": 0.2, "high": 0.4}}
DOWN = {**JUDGED, "answer": "not judged", "why": "down"}
UNKNOWN = {**JUDGED, "fixed_before_training": "unknown"}


@pytest.mark.parametrize(
    ("judgements", "passed", "number"),
    [
        ([LOST, JUDGED, JUDGED], False, 1),
        ([JUDGED, LOST, DOWN], True, 1),
        ([DOWN, JUDGED, LOST], True, 2),
        ([UNKNOWN, LOST, JUDGED], False, 2),
        ([{**LOST, "model": "x"}, {**LOST, "pairs": [{}]}, JUDGED], True, 3),
        ([{**JUDGED, "model": "x"}, {**JUDGED, "against": "sft"}, LOST], False, 3),
        ([DOWN, {**JUDGED, "model": "x"}, DOWN], False, 1),
    ],
)
def test_the_first_judgement_that_the_version_asks_for_counts(
    judgements: list[dict[str, Any]], passed: bool, number: int
) -> None:
    gate = held({"judge_min_win_rate": 0.5}, judgements=judgements)
    assert gate["passed"] is passed
    end = f"(judgement {number} of 3; the first as the version asks for counts)"
    assert gate["why"].endswith(end)


def test_a_version_that_names_no_judge() -> None:
    asked = Asked(None, "r", 100)
    gate = held({"judge_min_win_rate": 0.5}, judgements=[JUDGED], asked=asked)
    assert (gate["passed"], gate["value"]) == (False, None)
    assert gate["why"].startswith("not judged: its params.yaml names no judge.model")


@pytest.mark.parametrize(
    ("judgement", "why"),
    [
        (None, "not judged: nobody has asked a judge"),
        ({"answer": "not judged", "why": "down"}, "not judged: down"),
        (
            {"model": "x"},
            "not judged as it asks for: by x, where the version's own params.yaml has m",
        ),
        ({"against": "sft"}, "not judged as it asks for: against sft, where the version's own"),
        ({"rubric_sha256": "x"}, "not judged as it asks for: by rubric x, where the version's"),
        (
            {"pairs": [{}]},
            "not judged as it asks for: on a number of pairs of 1, where the version's",
        ),
        ({"fixed_before_training": "no"}, "its rubric is younger than its weights"),
        ({"fixed_before_training": "unknown"}, "no run tells whether its rubric was fixed before"),
    ],
)
def test_what_a_judge_said_in_vain(judgement: dict[str, Any] | None, why: str) -> None:
    said = [] if judgement is None else [{**JUDGED, **judgement}]
    gate = held({"judge_min_win_rate": 0.0}, judgements=said)
    assert (gate["passed"], gate["value"]) == (False, None)
    assert gate["why"].startswith(why)
    assert gate["remedy"]


def test_latency() -> None:
    assert held({"max_latency_p95_seconds": 0.5}, latency=0.5)["passed"]
    gate = held({"max_latency_p95_seconds": 0.5}, latency=0.51)
    assert not gate["passed"]
    assert gate["why"] == "95% of its answers came within 0.51 s, above 0.5"
    gate = held({"max_latency_p95_seconds": 0.5})
    assert (gate["passed"], gate["value"]) == (False, None)
    assert gate["why"] == "the run of evaluate has no latency_p95_seconds"
