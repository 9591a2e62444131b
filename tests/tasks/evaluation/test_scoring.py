"""What evaluate.metrics.json holds."""

from __future__ import annotations

from tasks.evaluation import scoring
from tasks.evaluation.candidates import Answers
from tasks.evaluation.rows import Row


def test_lm_eval_is_kept_without_general_rows() -> None:
    rows = [Row("s.jsonl", "1", "test", False, [{"role": "assistant", "content": "a"}])]
    by = scoring.Scoring("classification", "accuracy", 0.95, 1, None, None)
    answers = {name: Answers(["a"], [None], 1, 1, {}) for name in ("base", "dpo")}
    numbers = {"hellaswag": {"acc": {"base": 0.25, "dpo": 0.5}}}
    measured: scoring.Measured = {
        name: {"test": {"accuracy": {"value": 1.0, "low": 0.2, "high": 1.0}}} for name in answers
    }
    found = scoring.document(rows, answers, measured, "dpo", {"classical": "why"}, numbers, by)
    assert (found["forgetting"], found["lm_eval"]) == (None, numbers)
    assert found["left_out"] == {"classical": "why"}


def test_the_champion_is_compared_on_each_source() -> None:
    """The old test, and what arrived later."""
    sources = ["arrived/new.jsonl"] * 2 + ["s.jsonl"] * 3
    expected = {"role": "assistant", "content": "a"}
    rows = [Row(name, str(n), "test", False, [expected]) for n, name in enumerate(sources)]
    by = scoring.Scoring("classification", "accuracy", 0.95, 1, None, None)
    said = {"base": "bbbbb", "champion": "bbaaa", "dpo": "abaaa"}
    answers = {name: Answers(list(texts), [None] * 5, 1, 1, {}) for name, texts in said.items()}
    found = scoring.document(rows, answers, {}, "dpo", {}, {}, by)
    values = {
        source: (part["rows"], part["left_value"], part["right_value"])
        for source, part in found["champion_by_source"].items()
    }
    assert values == {"arrived/new.jsonl": (2, 0.5, 0.0), "s.jsonl": (3, 1.0, 1.0)}
    alone = scoring.document(
        rows[2:], {n: of(a, 2) for n, a in answers.items()}, {}, "dpo", {}, {}, by
    )
    assert "champion_by_source" not in alone
    del answers["champion"]
    assert "champion_by_source" not in scoring.document(rows, answers, {}, "dpo", {}, {}, by)


def of(answers: Answers, first: int) -> Answers:
    return Answers(answers.texts[first:], answers.likelihoods[first:], 1, 1, {})
