"""Rows that the final candidate gets wrong, with what the others say to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.evaluation import answers
from tasks.evaluation.rows import Row

MOST = 12
MOST_CHARACTERS = 600
"""Of a prompt or an answer that is shown; predictions.jsonl has all of it."""


@dataclass(frozen=True)
class Example:
    """A row with its prompt, role by role, the expected answer, and the candidates' by name."""

    id: str
    hard: bool
    prompt: list[tuple[str, str]]
    expected: str
    answers: list[tuple[str, str]]


def wrong(rows: Sequence[Row], given: Sequence[str | None]) -> list[int]:
    """Positions of the rows that are not answered exactly right."""
    return [
        at
        for at, row in enumerate(rows)
        if (said := given[at]) is None or not answers.matches(said, row.expected)
    ]


def example(row: Row, at: int, given: Mapping[str, Sequence[str | None]]) -> Example:
    """Row number `at` with the answers of those who were asked it."""
    return Example(
        id=row.id,
        hard=row.hard,
        prompt=[
            (turn["role"], _short(turn["content"]))
            for turn in row.prompt
            if turn["role"] != "system"
        ],
        expected=_short(row.expected),
        answers=[
            (name, _short(said)) for name, texts in given.items() if (said := texts[at]) is not None
        ],
    )


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
