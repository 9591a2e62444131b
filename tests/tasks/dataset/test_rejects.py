"""The reject file: places, counts, and nothing personal in it."""

import json
from pathlib import Path

import pytest

from tasks.dataset.faults import quoted
from tasks.dataset.rejects import Rejects, account
from tasks.lineage.stage import StageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_reject_holds_no_personal_data_in_any_field(tmp_path: Path) -> None:
    secret = "anna.berg@example.com"
    with Rejects(tmp_path / "rejected" / "stage.jsonl") as rejects:
        rejects.add("a.jsonl", "wrong_type", f"column {secret!r}", f"mail {secret}", id=secret)
    text = (tmp_path / "rejected" / "stage.jsonl").read_text(encoding="utf-8")
    assert secret not in text
    assert json.loads(text) == {
        "source": "a.jsonl",
        "file": None,
        "line": None,
        "byte": None,
        "id": "[email]",
        "reason": "wrong_type",
        "detail": "column '[email]'",
        "snippet": "mail [email]",
    }
    assert secret not in rejects.over({"a.jsonl": 1}, 0.0, "key")[0]


def test_counts_by_heading_and_reason(tmp_path: Path) -> None:
    with Rejects(tmp_path / "stage.jsonl") as rejects:
        for source, reason in (("a", "x"), ("a", "y"), ("b", "y"), ("b", "y")):
            rejects.add(source, reason, "", b"", under="chat" if source == "a" else None)
    assert rejects.by_reason("chat") == {"x": 1, "y": 1}
    assert (rejects.count("chat"), rejects.count("b"), rejects.count("a")) == (2, 2, 0)
    assert rejects.total() == {"x": 1, "y": 3}
    assert rejects.over({"chat": 4, "b": 4}, 0.5, "key") == []
    complaint, where = rejects.over({"chat": 3, "b": 4}, 0.5, "key")
    assert complaint.startswith("chat: 2 of 3 rows (66.7%) rejected, key allows 50.0%")
    assert where == "All of them: .tunetrail/rejected/stage.jsonl"


def test_what_was_rejected_outlives_a_failed_stage(tmp_path: Path) -> None:
    out = tmp_path / ".ingest.jsonl.partial"  # as the stage runner calls it while the stage runs
    with Rejects(out) as rejects:
        rejects.add("a", "x", "", b"row", line=1, byte=0)
        assert (
            rejects.over({"a": 1}, 0.0, "key")[-1]
            == "All of them: .tunetrail/rejected/ingest.jsonl"
        )
    kept = tmp_path / ".tunetrail" / "rejected"
    assert [path.name for path in kept.iterdir()] == ["ingest.jsonl"]
    assert (kept / "ingest.jsonl").read_bytes() == out.read_bytes()
    with Rejects(out):
        assert list(kept.iterdir()) == []


def test_a_row_that_went_missing_is_a_fault_of_the_code() -> None:
    account("a.jsonl", 3, 2, 1)
    with pytest.raises(
        StageError, match=r"a.jsonl: 3 rows in, but 2 out and 0 rejected; a row went"
    ):
        account("a.jsonl", 3, 2, 0)


def test_what_the_pipeline_says_stays_and_what_the_row_says_does_not(tmp_path: Path) -> None:
    name = "0b7cbd1e-6f2a-4c7e-9d3b-5f0a1c2d3e4f"
    detail = f"123456789 bytes, more than 1000000; nearly the same as {name}"
    with Rejects(tmp_path / "stage.jsonl") as rejects:
        rejects.add("a.jsonl", "x", detail, f"row {name} 987654321987", id="987654321")
        rejects.add("a.jsonl", "x", "y" * 1000, "")
    first, second = map(json.loads, (tmp_path / "stage.jsonl").read_text().splitlines())
    assert (first["detail"], first["id"]) == (detail, "987654321")
    assert first["snippet"] == "row [token] [digits]"
    assert len(second["detail"]) == 300


def test_a_detail_quotes_names_and_no_sentences() -> None:
    assert quoted("reply_to") == "'reply_to'"
    assert quoted("call 0171 2345678 at once, my dear") == "of 34 characters"
