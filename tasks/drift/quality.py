"""The champion's own score on arrivals that carry answers, against its score when it was registered."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import orjson

from tasks.drift.learned import is_of
from tasks.evaluation import metrics, statistics
from tasks.evaluation.metrics import Answered
from tasks.params import DRIFT_ALARMS, Drift

if TYPE_CHECKING:
    from tasks.lineage.champion import Champion

PREDICTIONS = "predictions.jsonl"
"""Of a report: every answer on the test."""
LEAST_ROWS = 30
"""On each side: of fewer no interval says anything."""
SHOWN = 5


class Quality(TypedDict):
    """What came of it; scores are means of the primary metric over rows."""

    like: str
    metric: str
    before: float
    now: float
    rows_before: int
    rows_now: int
    difference: statistics.Estimate
    """Now less before."""
    confidence: float
    least: float
    fires: bool
    says: str
    look_at: list[dict[str, str]]


@dataclass(frozen=True)
class Registered:
    """How the champion was measured when it was registered."""

    metric: str
    final: str
    """What its report calls it."""
    predictions: Path
    schema: Mapping[str, Any] | None
    max_new_tokens: int

    def answered(self, like: str) -> list[Answered]:
        """Its answers to the test rows of a source."""
        with self.predictions.open("rb") as lines:
            rows = [orjson.loads(line) for line in lines]
        return [
            Answered(row["expected"], row["answers"][self.final], None, 0)
            for row in rows
            if row["split"] == "test"
            and is_of(row["source"], like)
            and self.final in row["answers"]
        ]


def measure(
    like: str,
    arrived: Sequence[Mapping[str, Any]],
    champion: Champion,
    registered: Registered,
    drift: Drift,
    threads: int,
    seed: int,
    sources: int,
) -> Quality | None:
    """Have the champion answer a sample of arrivals, and compare.

    Args:
        sources: of which this is one, and which share the false alarms.

    Returns:
        None where too few rows can be compared.
    """
    before = registered.answered(like)
    drawn = random.Random(seed).sample(arrived, min(drift.quality.rows, len(arrived)))
    if min(len(before), len(drawn)) < LEAST_ROWS:
        return None
    rows, now = _ask(drawn, champion, registered.max_new_tokens, threads)
    scores = [
        [value for value in _outcomes(registered, answered) if not math.isnan(value)]
        for answered in (before, now)
    ]
    if min(map(len, scores)) < LEAST_ROWS:
        return None
    share = drift.significance / DRIFT_ALARMS / sources
    confidence = 1 - 2 * share  # one-sided: a rise is no reason to retrain
    found = difference(scores[1], scores[0], confidence)
    means = [sum(values) / len(values) for values in scores]
    assert found["value"] is not None and found["high"] is not None
    fires = found["high"] < 0 and found["value"] <= -drift.quality.drop
    wrong = [
        {
            "why": f"the champion answers {answered.answer or '(nothing)'}",
            "source": str(row["source"]),
            "id": str(row["id"]),
            "prompt": "\n".join(
                turn["content"] for turn in row["messages"][:-1] if turn["role"] == "user"
            ),
            "answer": answered.expected,
        }
        for row, answered, value in zip(rows, now, _outcomes(registered, now), strict=True)
        if value < 0.5
    ]
    return {
        "like": like,
        "metric": registered.metric,
        "before": round(means[0], statistics.DIGITS),
        "now": round(means[1], statistics.DIGITS),
        "rows_before": len(scores[0]),
        "rows_now": len(scores[1]),
        "difference": found,
        "confidence": round(confidence, statistics.DIGITS),
        "least": drift.quality.drop,
        "fires": fires,
        "says": f"the champion's {registered.metric} on the arrivals is {means[1]:.3f}, and was "
        f"{means[0]:.3f} on its test (difference {found['value']:+.3f}, {confidence:.1%} interval "
        f"{found['low']:+.3f} to {found['high']:+.3f})",
        "look_at": wrong[:SHOWN],
    }


def _outcomes(registered: Registered, answered: Sequence[Answered]) -> list[float]:
    return metrics.outcomes(registered.metric, answered, None, registered.schema)


def _ask(
    drawn: Sequence[Mapping[str, Any]], champion: Champion, max_new_tokens: int, threads: int
) -> tuple[list[Mapping[str, Any]], list[Answered]]:
    """The rows that fit into the champion's context, and its answers to them."""
    from tasks.evaluation.candidates import Exported, Model
    from tasks.lineage.console import quiet
    from tasks.model import chat

    quiet()
    engine = "onnx" if champion.onnx else "transformers"
    model = Model(Exported(champion.merged, champion.onnx), engine, threads)
    rendered = chat.render_prompts([row["messages"][:-1] for row in drawn], model.tokenizer)
    asked = [
        (row, ids)
        for row, ids in zip(drawn, rendered, strict=True)
        if not isinstance(ids, chat.ChatError) and len(ids) < model.context
    ]
    given = model.generate([ids for _, ids in asked], max_new_tokens, lambda done: None)
    rows = [row for row, _ in asked]
    answered = [
        Answered(row["messages"][-1]["content"], model.decode(ids), None, 0)
        for row, ids in zip(rows, given, strict=True)
    ]
    return rows, answered


def difference(
    left: Sequence[float], right: Sequence[float], confidence: float
) -> statistics.Estimate:
    """Mean of the left less mean of the right, of different rows: with Newcombe's interval (1998,
    method 10) where both are shares of right rows, else Welch's (1947)."""
    value = sum(left) / len(left) - sum(right) / len(right)
    if all(one in (0, 1) for one in (*left, *right)):
        ours, others = (
            statistics.proportion(int(sum(side)), len(side), confidence) for side in (left, right)
        )
        low = value - math.hypot(_gap(ours, "low"), _gap(others, "high"))
        high = value + math.hypot(_gap(ours, "high"), _gap(others, "low"))
    else:
        from scipy.stats import ttest_ind

        interval = ttest_ind(left, right, equal_var=False).confidence_interval(confidence)
        low, high = float(interval.low), float(interval.high)
    digits = statistics.DIGITS
    return {"value": round(value, digits), "low": round(low, digits), "high": round(high, digits)}


def _gap(estimate: statistics.Estimate, end: str) -> float:
    return float(estimate[end]) - float(estimate["value"])  # type: ignore[literal-required,arg-type]
