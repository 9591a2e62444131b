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
