"""The records of benchmarks/data.py: what they are said to be, and the same each time."""

import json
from pathlib import Path

import pytest

from benchmarks import data_records


@pytest.fixture(scope="module")
def words(root: Path) -> list[str]:
    raw = root / "data" / "raw"
    return data_records.vocabulary([raw / "corpus.jsonl", raw / "general.jsonl"])


def test_a_short_file_is_the_beginning_of_a_long_one(tmp_path: Path, words: list[str]) -> None:
    for name, rows in (("short", 3_000), ("long", 11_000), ("again", 11_000)):
        data_records.write(tmp_path / name, rows, words, malformed=True)
    short, long = (tmp_path / "short").read_bytes(), (tmp_path / "long").read_bytes()
    assert long.startswith(short)
    assert short.count(b"\n") == 3_000
    assert (tmp_path / "again").read_bytes() == long


def test_faults_are_as_many_as_it_says(tmp_path: Path, words: list[str]) -> None:
    written = data_records.write(tmp_path / "f", 5_000, words, malformed=True)
    broken = 0
    for line in data_records.lines(tmp_path / "f"):
        try:
            values = json.loads(line, parse_constant=lambda name: 1 / 0)
            sound = line.count(b'"id"') == 1 and list(values) == data_records.COLUMNS
        except (ValueError, ZeroDivisionError, TypeError):
            sound = False
        broken += not sound
    assert written.rows == 5_000
    assert broken == written.malformed
    assert 0.003 < written.malformed / 5_000 < 0.007
    assert 0.006 < written.personal / 5_000 < 0.014
    assert 0.006 < written.copies / 5_000 < 0.014


def test_the_peers_file_has_no_broken_line(tmp_path: Path, words: list[str]) -> None:
    written = data_records.write(tmp_path / "f", 2_000, words, malformed=False)
    assert written.malformed == 0
    values = [json.loads(line) for line in data_records.lines(tmp_path / "f")]
    assert all(list(row) == data_records.COLUMNS for row in values)
    assert data_records.mapped(values[0])[1]["content"] in {
        f'{{"category":"{name}"}}' for name in data_records.CLASSES
    }
