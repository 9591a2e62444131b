"""The rows that candidates are compared on, and those that they may learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lineage.stage import StageError

SPLITS = ("test", "hard_test", "regression")


@dataclass(frozen=True)
class Row:
    """A conversation whose last turn, the assistant's, is to be found by a candidate."""

    source: str
    id: str
    split: str
    """"test" or "regression", "train" or "validation": what the row was read from."""
    hard: bool
    """Whether the row is part of the hard test too, which is a subset of the test."""
    messages: list[Any]
    time: str | None = None
    """ISO 8601, in UTC."""
    group: str | None = None

    @property
    def prompt(self) -> list[Any]:
        return self.messages[:-1]

    @property
    def expected(self) -> str:
        return str(self.messages[-1]["content"])

    @property
    def question(self) -> str:
        """What was said to the assistant before its answer, without a system turn."""
        return "\n".join(turn["content"] for turn in self.prompt if turn["role"] != "system")

    def is_in(self, split: str) -> bool:
        return self.split == split or (split == "hard_test" and self.hard)


def read(data: Path, regression_rows: int) -> list[Row]:
    """The rows of the test, then the first `regression_rows` of the regression suite.

    Raises:
        StageError: when the test is empty.
    """
    hard = {(row["source"], row["id"]) for row in _records(data / "hard_test.jsonl")}
    test = _records(data / "test.jsonl")
    if not test:
        raise StageError(
            f"{data / 'test.jsonl'} has 0 rows, and a verdict needs a test; set format.split "
            "in params.yaml so that rows fall into the test (test_from, test_share)"
        )
    regression = _records(data / "regression.jsonl")[:regression_rows]
    return [
        *(_row(row, "test", (row["source"], row["id"]) in hard) for row in test),
        *(_row(row, "regression", False) for row in regression),
    ]


def read_solved(data: Path, split: str) -> list[Row]:
    """The rows of "train" or "validation", each question once, general-domain rows left out: what a
    method may learn from that is to answer the test."""
    records = _records(data / f"{split}.jsonl")
    rows = [_row(row, split, False) for row in records if row.get("role") != "general"]
    return list({row.question: row for row in reversed(rows)}.values())[::-1]


def read_passages(corpus: Path) -> list[str]:
    """The paragraphs of the documents, each with its document's first line, which is its title."""
    passages = []
    for record in _records(corpus):
        title, *paragraphs = [part for part in record["text"].split("\n\n") if part.strip()] or [""]
        passages += [f"{title}\n{paragraph}" for paragraph in paragraphs] or [title]
    return list(dict.fromkeys(filter(None, passages)))


def where(rows: Sequence[Row], split: str) -> list[int]:
    """Positions of the rows of a split."""
    return [position for position, row in enumerate(rows) if row.is_in(split)]


def counts(data: Path) -> dict[str, int]:
    """Rows of each split, those that are not evaluated on included."""
    return {split: len(_records(data / f"{split}.jsonl")) for split in SPLITS}


def _row(record: dict[str, Any], split: str, hard: bool) -> Row:
    return Row(
        record["source"],
        record["id"],
        split,
        hard,
        record["messages"],
        record.get("time"),
        record.get("group"),
    )


def _records(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
