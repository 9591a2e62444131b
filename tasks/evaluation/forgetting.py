"""What training took away: the base model and the final one on rows of no trained domain.

Perplexity says whether the final model still expects such text, its answers whether it still does
what it is asked.  Both are compared row by row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypedDict

from tasks.evaluation import answers, metrics, statistics, task
from tasks.evaluation.metrics import Answered
from tasks.evaluation.statistics import NOT_MEASURED, Estimate

FORM = "form"
"""The share of answers that look as the expected one does, right or wrong."""
_LENGTH = 3
"""How many times as long or short as the expected answer an answer of the same form may be."""
_FEW_WORDS = 3
"""More or fewer than expected are the same form, whatever the factor."""
_NUMBER = re.compile(r"[-+]?[\d.,:/ ]*\d[\d.,:/ ]*%?")


class Following(TypedDict):
    metric: str
    base: Estimate
    final: Estimate
    difference: Estimate
    """Final less base."""


class Forgetting(TypedDict):
    rows: int
    perplexity_ratio: Estimate
    """Final over base: 1 where nothing changed."""
    following: Following
    """By the metric of the rows' own task: rouge_l where answers are free text."""
    form: Following


def measure(
    base: Sequence[Answered], final: Sequence[Answered], confidence: float, seed: int
) -> Forgetting | None:
    """Compare base and final on the regression rows; None without rows.

    Raises:
        ValueError: when the two are not of the same rows.
    """
    if [row.expected for row in base] != [row.expected for row in final]:
        raise ValueError("base and final must answer the same rows, in the same order")
    if not base:
        return None
    metric = task.primary(task.detect([row.expected for row in base]))
    return {
        "rows": len(base),
        "perplexity_ratio": _perplexity_ratio(base, final, confidence, seed),
        "following": _following(
            metric,
            metrics.outcomes(metric, base),
            metrics.outcomes(metric, final),
            confidence,
            seed,
        ),
        "form": _following(
            FORM,
            [float(same_form(row.answer, row.expected)) for row in base],
            [float(same_form(row.answer, row.expected)) for row in final],
            confidence,
            seed,
        ),
    }


def same_form(answer: str, expected: str) -> bool:
    """Whether an answer is of the kind that was asked for: JSON, a number, one line or several, and
    about as long."""
    if _kind(answer) != _kind(expected):
        return False
    if answers.parse(expected) is not None:
        return answers.fields(answer).keys() == answers.fields(expected).keys()
    given, asked = (max(1, len(metrics.words(text))) for text in (answer, expected))
    longer, shorter = max(given, asked), min(given, asked)
    return longer <= max(_LENGTH * shorter, shorter + _FEW_WORDS)


def _kind(text: str) -> str:
    text = text.strip()
    if not text:
        return "nothing"
    if (structure := answers.parse(text)) is not None:
        return type(structure).__name__
    if len(text) <= 40 and _NUMBER.fullmatch(text):
        return "number"
    return "lines" if "\n" in text else "line"


def _perplexity_ratio(
    base: Sequence[Answered], final: Sequence[Answered], confidence: float, seed: int
) -> Estimate:
    scored = [
        (after.nll, before.nll, before.tokens)
        for before, after in zip(base, final, strict=True)
        if before.nll is not None and after.nll is not None and before.tokens
    ]
    if not scored or not all(math.isfinite(a) and math.isfinite(b) for a, b, _ in scored):
        return NOT_MEASURED
    after, before, tokens = zip(*scored, strict=True)
    return statistics.ratio(after, before, tokens, confidence, seed)


def _following(
    metric: str,
    base: Sequence[float],
    final: Sequence[float],
    confidence: float,
    seed: int,
) -> Following:
    return {
        "metric": metric,
        "base": statistics.average(base, confidence, seed),
        "final": statistics.average(final, confidence, seed),
        "difference": statistics.paired_difference(final, base, confidence, seed),
    }
