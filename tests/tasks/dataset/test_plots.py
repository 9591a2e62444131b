"""The numbers behind the pictures of the formatted data."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tasks.dataset import columns, plots, splits
from tasks.dataset.columns import Reading, Rows
from tasks.dataset.splits import TRAINING, Plan
from tasks.model import chat


def answered(id: int, answer: str) -> dict[str, Any]:
    about = {"source": "s", "role": "train", "time": None, "group": None}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return {"id": str(id), **about, "messages": turns}


ANSWERS = [f"class {n}" for n in range(32) for _ in range(40 - n)] + [
    "write to a.b@example.com"
] * 50


@pytest.fixture
def rows(tmp_path: Path, tiny_model: Path) -> Iterator[Rows]:
    data = tmp_path / "data"
    data.mkdir()
    lines = [
        orjson.dumps(answered(*row), option=orjson.OPT_APPEND_NEWLINE) for row in enumerate(ANSWERS)
    ]
    (data / "chat.jsonl").write_bytes(b"".join(lines))
    for kind in ("preference", "text"):
        (data / f"{kind}.jsonl").write_bytes(b"")
    tokenizer = chat.load_tokenizer(tiny_model)
    with (
        tempfile.TemporaryFile() as scratch,
        columns.read(Reading(data, tiny_model, 64, None), tokenizer, scratch, 1) as found,
    ):
        yield found


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_commonest_answers_and_all_others(rows: Rows, tmp_path: Path) -> None:
    count = len(rows.columns)
    plan = Plan(rows.columns, np.arange(count) - np.arange(count) % 2)
    plan.side[:] = TRAINING
    plan.copies[0] = 5
    parts = {split: np.zeros(count, np.bool_) for split in splits.SPLITS}
    parts["train"][:-10] = True
    parts["test"][-10:] = True
    plots.write(tmp_path / "plots", rows, plan, parts, 64)
    classes = table(tmp_path / "plots" / "classes.csv")
    train = {line["class"]: int(line["rows"]) for line in classes if line["split"] == "train"}
    assert len(train) == plots.CLASSES + 1
    assert list(train)[:2] == ["write to [email]", "class 0"]
    assert list(train)[-1] == "other"
    assert train["write to [email]"] == 40
    assert train["class 0"] == 40 + 4  # as often as it is trained on
    assert train["other"] == 11 + 10 + 9  # the three of 33 that are rarest
    test = {line["class"]: int(line["rows"]) for line in classes if line["split"] == "test"}
    assert test["write to [email]"] == sum(test.values()) == 10
    assert table(tmp_path / "plots" / "splits.csv")[:3] == [
        {"split": "train", "rows": str(count - 10 + 4)},
        {"split": "validation", "rows": "0"},
        {"split": "test", "rows": "10"},
    ]
    assert sum(int(line["rows"]) for line in table(tmp_path / "plots" / "lengths.csv")) == count + 4
    assert table(tmp_path / "plots" / "clusters.csv") == [{"size": "2", "rows": str(count)}]
