"""Some intents of Banking77: their rows alone, unchanged."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [("Where is it?", "card_arrival"), ('He said "no",\ntwice', "b"), ("x", "a"), ("y", "b")]


def write(folder: Path, columns: list[str]) -> None:
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *ROWS])


def select(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "data/intents.py", str(folder), "--out", str(out), "--intents", "2"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_first_intents_are_taken(tmp_path: Path) -> None:
    write(tmp_path / "all", ["text", "category"])
    assert select(tmp_path / "all", tmp_path / "out").returncode == 0
    for name in ("train.csv", "test.csv"):
        with (tmp_path / "out" / name).open(encoding="utf-8", newline="") as file:
            assert [tuple(row) for row in csv.reader(file)] == [("text", "category"), *ROWS[1:]]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (["text", "label"], "has the columns ['text', 'label'], not ['text', 'category']"),
        (None, "cannot be read (No such file or directory); name Banking77's folder"),
    ],
)
def test_what_is_not_banking77(columns: list[str] | None, told: str, tmp_path: Path) -> None:
    if columns:
        write(tmp_path / "all", columns)
    failed = select(tmp_path / "all", tmp_path / "out")
    assert failed.returncode == 1
    assert told in failed.stderr
    assert not (tmp_path / "out").exists()
