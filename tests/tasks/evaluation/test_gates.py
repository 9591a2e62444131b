"""The verdict, gate by gate."""

import math

from tasks.evaluation import contamination, gates
from tasks.evaluation.statistics import Estimate


def measured(**values: float) -> dict[str, Estimate]:
    return {name: {"value": value, "low": 0.0, "high": 1.0} for name, value in values.items()}


def verdict(limits: dict[str, float], **values: float) -> gates.Verdict:
    return gates.judge("dpo", "test", measured(**values), limits)


def test_all_gates_hold() -> None:
    found = verdict({"json_valid": 0.99, "exact_match": 0.8}, json_valid=1.0, exact_match=0.8)
    assert found["verdict"] == "pass"
    assert found["candidate"] == "dpo"
    assert [gate["why"] for gate in found["gates"]] == ["1 is at least 0.99", "0.8 is at least 0.8"]


def test_one_gate_fails_all() -> None:
    found = verdict({"json_valid": 0.99, "exact_match": 0.8}, json_valid=1.0, exact_match=0.79)
    assert found["verdict"] == "fail"
    assert found["gates"][1] == {
        "metric": "exact_match",
        "split": "test",
        "value": 0.79,
        "limit": 0.8,
        "passed": False,
        "why": "0.79 is below 0.8",
    }


def test_a_value_just_below_its_limit_is_told_from_it() -> None:
    (gate,) = verdict({"json_valid": 0.99}, json_valid=0.989999)["gates"]
    assert not gate["passed"]
    assert gate["why"] == "0.989999 is below 0.99"


def test_what_is_not_measured_fails() -> None:
    (gate,) = verdict({"f1": 0.5}, json_valid=1.0, exact_match=1.0)["gates"]
    assert not gate["passed"]
    assert gate["value"] is None
    assert gate["why"] == "f1 is not measured on test; measured are json_valid, exact_match"


def test_nothing_measured_fails() -> None:
    (gate,) = verdict({"json_valid": 0.5})["gates"]
    assert gate["why"] == "json_valid is not measured on test; measured are none"


def test_not_a_number_fails() -> None:
    found = verdict({"perplexity": 2.0}, perplexity=math.nan)
    assert found["verdict"] == "fail"
    assert found["gates"][0]["value"] is None


def test_perplexity_is_better_when_lower() -> None:
    assert verdict({"perplexity": 2.0}, perplexity=1.5)["verdict"] == "pass"
    (gate,) = verdict({"perplexity": 2.0}, perplexity=2.5)["gates"]
    assert gate["why"] == "2.5 is above 2"


def test_contamination_is_better_when_lower() -> None:
    found = verdict({"contaminated_share": 0.01}, contaminated_share=0.01)
    assert found["gates"][0]["why"] == "0.01 is at most 0.01"
    assert found["contaminated_share"] == {"value": 0.01, "low": 0.0, "high": 1.0}
    (gate,) = verdict({"contaminated_share": 0.01}, contaminated_share=0.02)["gates"]
    assert (gate["passed"], gate["why"]) == (False, "0.02 is above 0.01")


def test_contamination_that_was_not_judged_fails() -> None:
    metrics = {**measured(exact_match=1.0), "contaminated_share": contamination.NOT_JUDGED}
    found = gates.judge("dpo", "test", metrics, {"contaminated_share": 0.1})
    assert found["gates"][0]["why"] == (
        "contaminated_share is not measured on test; measured are exact_match"
    )
    assert found["contaminated_share"]["value"] is None


def test_no_gates_pass() -> None:
    assert verdict({})["verdict"] == "pass"
