"""Which rows are evaluated on."""

import json
from pathlib import Path

import pytest

from tasks.evaluation import rows
from tasks.lineage.stage import StageError


def chat(id: str, source: str = "s.jsonl") -> dict[str, object]:
    turns = [{"role": "user", "content": f"q {id}"}, {"role": "assistant", "content": f"a {id}"}]
    return {"id": id, "source": source, "messages": turns}


def write(folder: Path, **parts: list[dict[str, object]]) -> Path:
    for part in rows.SPLITS:
        text = "".join(json.dumps(row) + "\n" for row in parts.get(part, []))
        (folder / f"{part}.jsonl").write_text(text)
    return folder


def test_hard_rows_are_test_rows_of_the_same_source_and_id(tmp_path: Path) -> None:
    data = write(
        tmp_path,
        test=[chat("1"), chat("2"), chat("2", "other.jsonl")],
        hard_test=[chat("2")],
        regression=[chat("2"), chat("1")],
    )
    found = rows.read(data, 1)
    assert [(row.source, row.id, row.split, row.hard) for row in found] == [
        ("s.jsonl", "1", "test", False),
        ("s.jsonl", "2", "test", True),
        ("other.jsonl", "2", "test", False),
        ("s.jsonl", "2", "regression", False),
    ]
    assert [row for row in found if row.is_in("hard_test")] == [found[1]]
    assert (found[0].prompt, found[0].expected) == (chat("1")["messages"][:1], "a 1")


def test_no_test_rows(tmp_path: Path) -> None:
    data = write(tmp_path, regression=[chat("1")])
    with pytest.raises(StageError, match=r"test.jsonl has 0 rows, and a verdict needs a test; set"):
        rows.read(data, 5)


def test_counts(tmp_path: Path) -> None:
    data = write(tmp_path, regression=[chat("1"), chat("2")], test=[chat("3")])
    assert rows.counts(data) == {
        "test": 1,
        "hard_test": 0,
        "regression": 2,
    }


def test_what_may_be_learned_from(tmp_path: Path) -> None:
    again = {**chat("9"), "messages": chat("1")["messages"]}
    records = [chat("1"), {**chat("2"), "role": "general"}, again, {**chat("3"), "role": "train"}]
    text = "".join(json.dumps(row) + "\n" for row in records)
    (tmp_path / "train.jsonl").write_text(text)
    found = rows.read_solved(tmp_path, "train")
    assert [(row.id, row.split) for row in found] == [("1", "train"), ("3", "train")]


def test_time_and_group_are_kept_and_a_system_turn_is_no_question(tmp_path: Path) -> None:
    row = {**chat("1"), "time": "2026-09-01T00:00:00Z", "group": "g"}
    row["messages"] = [{"role": "system", "content": "s"}, *chat("1")["messages"]]  # type: ignore[misc]
    (found,) = rows.read(write(tmp_path, test=[row]), 0)
    assert (found.time, found.group, found.question) == ("2026-09-01T00:00:00Z", "g", "q 1")


def test_passages_carry_their_title(tmp_path: Path) -> None:
    texts = ["Title\n\nfirst\n\n\n\nsecond", "only a title", "", "Title\n\nfirst"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus.jsonl").write_text(lines)
    assert rows.read_passages(tmp_path / "corpus.jsonl") == [
        "Title\nfirst",
        "Title\nsecond",
        "only a title",
    ]
