"""What the champion learned from one source, and how its rows fared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from drift_rows import LIKE, chat

from tasks.drift import learned
from tasks.drift.learned import Learned
from tasks.lineage.stage import StageError


def write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Learned:
    """Ten rows, two of them trained on twice; a row of another source."""
    rows = [chat(at, f"text {at}", "yes") for at in range(10)]
    other = {**chat(99, "other", "no"), "source": "other.jsonl"}
    write(tmp_path / "formatted" / "train.jsonl", [*rows[:8], other, *rows[:2]])
    write(tmp_path / "validated" / "chat.jsonl", [*rows, other])
    for name, sources in (("ingest", [LIKE, LIKE, "other.jsonl"]), ("validate", [LIKE])):
        rejects = [{"source": source, "reason": f"{name}_fault"} for source in sources]
        write(tmp_path / "rejected" / f"{name}.jsonl", rejects)
    paths = tmp_path / "rejected" / "ingest.jsonl", tmp_path / "rejected" / "validate.jsonl"
    sources = ({"file": LIKE}, {"file": "other.jsonl"})
    write(tmp_path / "corpus.jsonl", [])
    return Learned(
        tmp_path / "formatted",
        tmp_path / "corpus.jsonl",
        tmp_path / "validated",
        paths,
        sources,
    )


def test_rows_of_the_source_alone_each_once(data: Learned) -> None:
    side = learned.side(data, LIKE, "chat", 100, 1)
    assert [row["id"] for row in side.records] == [f"{at}" for at in range(8)]
    assert side.with_copies is not None
    assert [row["id"] for row in side.with_copies] == [f"{at}" for at in range(10)]
    assert side.accepted == 10
    assert side.rejected == {"ingest_fault": 2, "validate_fault": 1}
    assert side.rows == 13


def test_a_large_source_is_sampled(data: Learned) -> None:
    side = learned.side(data, LIKE, "chat", 5, 1)
    assert len(side.records) == 5
    assert side.accepted == 10


def test_a_source_that_the_champion_does_not_know(data: Learned) -> None:
    with pytest.raises(StageError) as caught:
        learned.side(data, "new.jsonl", "chat", 5, 1)
    assert str(caught.value) == (
        "drift.incoming: the champion learned from no source new.jsonl; its sources: "
        f"{LIKE}, other.jsonl"
    )


@pytest.mark.parametrize(
    ("source", "like", "is_of"),
    [
        ("a.jsonl", "a.jsonl", True),
        ("b.jsonl", "a.jsonl", False),
        ("a.zip!inner.jsonl", "a.zip", True),
        ("week/1.jsonl", "week/*.jsonl", True),
        ("https://x/a.jsonl", "https://x/a.jsonl#sha256=" + "0" * 64, True),
        ("a[1].jsonl", "a[1].jsonl", True),
    ],
)
def test_whether_a_record_is_of_a_source(source: str, like: str, is_of: bool) -> None:
    assert learned.is_of(source, like) is is_of
