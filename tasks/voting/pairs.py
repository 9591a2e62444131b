"""Which answers of a version are compared: rows of its test on which two candidates differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation import answers
from tasks.lineage.stage import StageError

SIMPLER = "simpler"
"""Stands for the best of the simpler methods, as evaluate found it."""


@dataclass(frozen=True)
class Pair:
    """A request with two answers to it."""

    row: str
    """Source and id of the test row."""
    request: Sequence[Mapping[str, str]]
    """The turns of the conversation, as `{"role", "content"}`."""
    final: str
    other: str


@dataclass(frozen=True)
class Drawn:
    """Pairs to compare, and what they were drawn from."""

    final: str
    against: str
    """The names of the two candidates."""
    pairs: list[Pair]
    rows: int
    """Of the test that both have answered."""
    same: int
    """Of these, rows on which both say the same, about which nobody is asked."""


def opponent(against: str, measured: Mapping[str, Any]) -> str:
    """The candidate that `judge.against` means.

    Args:
        measured: the version's evaluate.metrics.json.

    Raises:
        StageError: when no simpler method was measured.
    """
    if against != SIMPLER:
        return against
    comparison = (measured.get("comparisons") or {}).get("simpler")
    if not comparison:
        raise StageError(
            "judge.against is simpler, but no simpler method was measured; name a candidate of the "
            "report, or let evaluate measure one (evaluate.classical, few_shot, retrieval)"
        )
    return str(comparison["right"])


def draw(predictions: Path, final: str, against: str, count: int, seed: int) -> Drawn:
    """Draw rows of the test on which two candidates differ.

    The order follows from seed and rows alone, so that a smaller draw is the beginning of a larger
    one: people and judge are asked about the same rows.

    Args:
        predictions: as evaluate wrote it, one row a line.
        count: as many at most.

    Raises:
        StageError: when a candidate has not answered, or both always say the same.
    """
    with predictions.open(encoding="utf-8") as lines:
        test = [row for row in map(json.loads, lines) if row["split"] == "test"]
    for name in (final, against):
        if all(row["answers"].get(name) is None for row in test):
            known = ", ".join(test[0]["answers"]) if test else "none"
            raise StageError(
                f"{name} has answered no row of the test; those that have: {known}; name one of them"
            )
    if any("prompt" not in row for row in test):
        raise StageError(
            f"{predictions.name} holds no requests, as it was before answers could be compared; "
            "register the model anew with `tunetrail run`"
        )
    both = [row for row in test if None not in _of(row, final, against)]
    differing = [row for row in both if not answers.matches(*_of(row, final, against))]
    if not differing:
        raise StageError(
            f"{final} and {against} say the same on all {len(both)} rows of the test, so there is "
            "nothing to compare; compare with another candidate"
        )
    shuffled = sorted(differing, key=lambda row: _draw_key(row, seed))
    pairs = [Pair(_key(row), row["prompt"], *_of(row, final, against)) for row in shuffled[:count]]
    return Drawn(final, against, pairs, len(both), len(both) - len(differing))


def _of(row: Mapping[str, Any], final: str, against: str) -> tuple[str, str]:
    return row["answers"].get(final), row["answers"].get(against)


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['source']}/{row['id']}"


def _draw_key(row: Mapping[str, Any], seed: int) -> str:
    return hashlib.sha256(f"{seed} {_key(row)}".encode()).hexdigest()
