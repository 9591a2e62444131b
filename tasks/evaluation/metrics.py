"""What candidates are measured by: the right answer, its form, and how likely it was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.evaluation import answers, contamination, statistics
from tasks.evaluation.statistics import Estimate

LOWER_IS_BETTER = frozenset({"perplexity", contamination.METRIC})
NO_SHARE = frozenset({"perplexity"})
"""All other metrics lie between 0 and 1."""


@dataclass(frozen=True)
class Answered:
    """A row that a candidate has answered."""

    expected: str
    answer: str
    nll: float
    """Of the expected answer, in nats, summed over its tokens."""
    tokens: int


def measure(rows: Sequence[Answered], confidence: float, seed: int) -> dict[str, Estimate]:
    """Every metric that the rows allow.

    Returns:
        `<field>_accuracy` for each field of the expected JSON objects, over the rows that expect
        it; `json_valid`, the share of answers that are a JSON object or array; `exact_match`;
        `perplexity` of the expected answers. Nothing for no rows.
    """
    if not rows:
        return {}

    def share(holds: Callable[[Answered], bool], of: Sequence[Answered]) -> Estimate:
        return statistics.share([holds(row) for row in of], confidence)

    measured = {}
    for field in expected_fields([row.expected for row in rows]):

        def right(row: Answered, field: str = field) -> bool:
            return answers.field_matches(row.answer, row.expected, field)

        asked = [row for row in rows if field in answers.fields(row.expected)]
        measured[f"{field}_accuracy"] = share(right, asked)
    measured["json_valid"] = share(lambda row: answers.parse(row.answer) is not None, rows)
    measured["exact_match"] = share(lambda row: answers.matches(row.answer, row.expected), rows)
    measured["perplexity"] = statistics.perplexity(
        [row.nll for row in rows], [row.tokens for row in rows], confidence, seed
    )
    return measured


def expected_fields(expected: Sequence[str]) -> list[str]:
    """The fields of the expected JSON objects, in the order in which they first occur."""
    return list(dict.fromkeys(field for text in expected for field in answers.fields(text)))
