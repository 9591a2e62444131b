"""What kind of answers a model is asked for, which decides what it is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tasks.evaluation import answers

Task = Literal["classification", "structured", "generation"]

PRIMARY: dict[Task, str] = {
    "classification": "accuracy",
    "structured": "exact_match",
    "generation": "rouge_l",
}
"""The metric that candidates are compared by."""
MOST_CLASSES = 200
MOST_LABEL_CHARACTERS = 60
STRUCTURED_SHARE = 0.9
"""Of the expected answers; a few that are text do not make a task of JSON one of free text."""


def detect(expected: Sequence[str]) -> Task:
    """The task that the expected answers speak of.

    "structured" where nearly all are JSON objects or arrays; "classification" where they are short
    labels, each of them given at least twice on average; else, and where there are none,
    "generation", which any text allows.
    """
    if not expected:
        return "generation"
    if sum(answers.parse(text) is not None for text in expected) >= STRUCTURED_SHARE * len(
        expected
    ):
        return "structured"
    labels = {text.strip() for text in expected}
    short = all(len(label) <= MOST_LABEL_CHARACTERS and "\n" not in label for label in labels)
    if short and len(labels) <= min(MOST_CLASSES, len(expected) / 2):
        return "classification"
    return "generation"


def primary(task: Task) -> str:
    """The metric that decides where params.yaml leaves it open."""
    return PRIMARY[task]
