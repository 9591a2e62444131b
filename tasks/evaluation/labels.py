"""Answers as labels: which field of an answer is a class, and which classes are mixed up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.evaluation import answers
from tasks.evaluation.metrics import expected_fields
from tasks.evaluation.statistics import Estimate, share
from tasks.evaluation.task import MOST_CLASSES, detect

MOST_LABELS = 20
"""A field of a JSON answer with more values is free text rather than a class."""
WHOLE_ANSWER = "answer"
"""The name of the field where answers are text, and each text is a class."""
OTHER, UNREADABLE = "other value", "no value"


@dataclass(frozen=True)
class Field:
    """A field of the expected answers whose values are classes, in alphabetical order."""

    name: str
    labels: list[str]

    def label(self, answer: str) -> str | None:
        """An answer's class; None where it has none."""
        if self.name == WHOLE_ANSWER and not answers.fields(answer):
            return answer.strip()
        found = answers.fields(answer)
        return _text(found[self.name]) if self.name in found else None

    def right(self, answer: str, expected: str) -> bool:
        if self.name == WHOLE_ANSWER and not answers.fields(expected):
            return answers.matches(answer, expected)
        return answers.field_matches(answer, expected, self.name)


@dataclass(frozen=True)
class LabelAccuracy:
    label: str
    rows: int
    accuracy: list[Estimate]
    """Of each candidate, in the order in which they were given."""


@dataclass(frozen=True)
class Confusion:
    field: str
    columns: list[str]
    rows: list[tuple[str, list[int]]]
    """For each expected label, how often each column was answered."""


def find(expected: Sequence[str]) -> list[Field]:
    """The fields that are classes: 2 to MOST_LABELS values, and fewer than half as many as rows; of
    a task of classification its labels, as many as there are."""
    names = expected_fields(expected) or [WHOLE_ANSWER]
    most = MOST_CLASSES if detect(expected) == "classification" else MOST_LABELS
    fields = []
    for name in names:
        values = (Field(name, []).label(text) for text in expected)
        labels = sorted({value for value in values if value is not None})
        if 2 <= len(labels) <= min(most, len(expected) / 2):
            fields.append(Field(name, labels))
    return fields


def accuracies(
    field: Field, expected: Sequence[str], given: Sequence[Sequence[str]], confidence: float
) -> list[LabelAccuracy]:
    """How often each label is found, by each of several candidates.

    Args:
        given: for each candidate its answers, in the order of `expected`.
    """
    found = []
    for label in field.labels:
        positions = [at for at, text in enumerate(expected) if field.label(text) == label]
        accuracy = [
            share([field.right(texts[at], expected[at]) for at in positions], confidence)
            for texts in given
        ]
        found.append(LabelAccuracy(label, len(positions), accuracy))
    return found


def confusion(field: Field, expected: Sequence[str], given: Sequence[str]) -> Confusion:
    """Which label is taken for which; what is no known label has a column at the end."""
    counts = Counter(pairs(field, expected, given))
    columns = [*field.labels, OTHER, UNREADABLE]
    rows = [(label, [counts[label, column] for column in columns]) for label in field.labels]
    return Confusion(field.name, columns, rows)


def pairs(field: Field, expected: Sequence[str], given: Sequence[str]) -> list[tuple[str, str]]:
    """The expected and the answered label of each row that expects one."""
    return [
        (label, _known(field, answer))
        for right, answer in zip(expected, given, strict=True)
        if (label := field.label(right)) is not None
    ]


def _known(field: Field, answer: str) -> str:
    label = field.label(answer)
    if label is None:
        return UNREADABLE
    return label if label in field.labels else OTHER


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
