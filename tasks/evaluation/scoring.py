"""What the answers of all candidates are worth: metrics, comparisons, and what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from tasks.evaluation import comparisons, forgetting, harness, metrics, slices, task
from tasks.evaluation import rows as test_rows
from tasks.evaluation.candidates import Answers
from tasks.evaluation.comparisons import Comparison
from tasks.evaluation.contamination import METRIC as CONTAMINATED
from tasks.evaluation.contamination import Contamination
from tasks.evaluation.metrics import Answered
from tasks.evaluation.rows import SPLITS, Row
from tasks.evaluation.statistics import Estimate
from tasks.evaluation.task import Task
from tasks.params import Evaluate

REGRESSION = "regression"
Measured = dict[str, dict[str, dict[str, Estimate]]]
"""By candidate, split and metric."""


@dataclass(frozen=True)
class Scoring:
    """By what candidates are measured and compared."""

    task: Task
    primary: str
    confidence: float
    seed: int
    embedding_model: Path | None
    schema: Mapping[str, Any] | None

    @classmethod
    def of(
        cls, rows: Sequence[Row], evaluate: Evaluate, schema: Mapping[str, Any] | None, seed: int
    ) -> Scoring:
        """As params.yaml says, and the expected answers of the test where it leaves that open."""
        kind: Task = (
            task.detect([row.expected for row in rows if row.is_in(comparisons.SPLIT)])
            if evaluate.task == "auto"
            else evaluate.task
        )
        return cls(
            task=kind,
            primary=task.primary(kind) if evaluate.primary == "auto" else evaluate.primary,
            confidence=evaluate.confidence,
            seed=seed,
            embedding_model=Path(evaluate.embedding_model) if evaluate.embedding_model else None,
            schema=schema,
        )

    def outcomes(self, answered: Sequence[Answered]) -> list[float]:
        """What the primary metric gives each row."""
        return metrics.outcomes(self.primary, answered, self.embedding_model, self.schema)

    def measure(self, answered: Sequence[Answered], split: str) -> dict[str, Estimate]:
        """Every metric of a split; general rows are a task of their own, of no schema."""
        kind, schema = self.task, self.schema
        if split == REGRESSION:
            kind, schema = task.detect([row.expected for row in answered]), None
        return metrics.measure(
            answered, kind, self.confidence, self.seed, self.embedding_model, schema
        )


def measured(
    rows: Sequence[Row],
    answers: Mapping[str, Answers],
    contaminated: Mapping[str, Contamination],
    scoring: Scoring,
) -> Measured:
    """Metrics by candidate and split; none stands without the share of the split that was trained
    on, and a split that a candidate was not asked has none."""
    known: dict[int, dict[str, dict[str, Estimate]]] = {}  # equal models share their answers
    for given in answers.values():
        if id(given) in known:
            continue
        known[id(given)] = splits = {}
        for split in SPLITS:
            found = scoring.measure(answered(rows, given, split), split)
            splits[split] = found
            if found:
                found[CONTAMINATED] = contaminated[split].share(scoring.confidence)
    return {name: known[id(given)] for name, given in answers.items()}


def document(
    rows: Sequence[Row],
    answers: Mapping[str, Answers],
    numbers: Measured,
    final: str,
    left_out: Mapping[str, str],
    lm_eval: harness.Numbers,
    scoring: Scoring,
) -> dict[str, Any]:
    """What evaluate.metrics.json holds."""

    def compared(other: str | None, source: str | None = None) -> Comparison | None:
        if other is None or other not in answers:
            return None
        left, right = (
            scoring.outcomes(answered(rows, answers[name], comparisons.SPLIT))
            for name in (final, other)
        )
        if source is not None:
            own = [rows[at].source == source for at in test]
            left, right = list(compress(left, own)), list(compress(right, own))
        return comparisons.compare(
            final,
            other,
            scoring.primary,
            comparisons.SPLIT,
            left,
            right,
            scoring.confidence,
            scoring.seed,
        )

    test = test_rows.where(rows, comparisons.SPLIT)
    champion = compared("champion")
    sources = sorted({rows[at].source for at in test}) if champion else []
    by_source = {source: compared("champion", source) for source in sources}
    forgotten = forgetting.measure(
        answered(rows, answers["base"], REGRESSION),
        answered(rows, answers[final], REGRESSION),
        scoring.confidence,
        scoring.seed,
    )
    return {
        "task": scoring.task,
        "primary": scoring.primary,
        "final": final,
        "candidates": numbers,
        "left_out": dict(left_out),
        "comparisons": {
            "simpler": compared(comparisons.best_simpler(numbers, scoring.primary)),
            "champion": champion,
        },
        # data that arrived later is a source of its own, so this is the old test and the new one
        **({"champion_by_source": by_source} if len(by_source) > 1 else {}),
        "forgetting": forgotten,
        "lm_eval": dict(lm_eval),
    }


def sliced(
    rows: Sequence[Row],
    answers: Mapping[str, Answers],
    lengths: Sequence[int],
    document: Mapping[str, Any],
    scoring: Scoring,
) -> list[slices.Slice]:
    """The final candidate against the best simpler one on every slice of the test.

    Args:
        lengths: of the prompts of all rows, in tokens.
    """
    final = document["final"]
    other = comparisons.best_simpler(document["candidates"], scoring.primary)
    if other is None:
        return []
    test = test_rows.where(rows, comparisons.SPLIT)
    ours, others = (
        scoring.outcomes(answered(rows, answers[name], comparisons.SPLIT))
        for name in (final, other)
    )
    return slices.measure(
        [rows[at] for at in test],
        [lengths[at] for at in test],
        ours,
        others,
        other,
        scoring.confidence,
        scoring.seed,
    )


def answered(rows: Sequence[Row], answers: Answers, split: str) -> list[Answered]:
    """What a candidate said to the rows of a split; nothing where it was not asked all of them."""
    found = []
    for at in test_rows.where(rows, split):
        text, score = answers.texts[at], answers.likelihoods[at]
        if text is None:
            return []
        nll, tokens = (score.nll, score.tokens) if score else (None, 0)
        found.append(Answered(rows[at].expected, text, nll, tokens))
    return found
