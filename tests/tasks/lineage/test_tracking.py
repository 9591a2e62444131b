from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from tasks.lineage import git, hashes, tracking
from tasks.lineage.tracking import Spool


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    spool = Spool(tmp_path / "spool", "sft", "shipments")
    tracking.use(spool)
    yield spool
    tracking.use(None)


def events(spool: Spool) -> list[dict]:
    return [json.loads(line) for line in spool.path.read_text(encoding="utf-8").splitlines()]


def test_outside_a_stage_nothing_is_recorded(tmp_path: Path) -> None:
    tracking.log_metrics({"loss": 1.0})
    tracking.log_tag("key", "value")
    tracking.log_artifact(tmp_path / "missing")
    tracking.log_input("train", tmp_path / "missing", "training")


def test_params_are_flat(spool: Spool) -> None:
    spool.start({"sft": {"lora_r": 16, "target_modules": ["q", "v"]}}, {"in:data": "1"})
    start = events(spool)[0]
    assert start["params"] == {"sft.lora_r": "16", "sft.target_modules": "['q', 'v']"}
    assert start["tags"]["in:data"] == "1"
    assert (start["stage"], start["experiment"]) == ("sft", "shipments")


def test_events_are_written_at_once(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("1")
    tracking.log_metrics({"loss": 1, "accuracy": 0.5}, step=3)
    tracking.log_tag("note", "a lone surrogate: \ud800")
    tracking.log_input("rows", Path("rows"), "training")
    kinds = [event["type"] for event in events(spool)]
    assert kinds == ["metric", "metric", "tag", "input"]
    assert events(spool)[0]["step"] == 3
    assert events(spool)[3]["digest"] == hashes.sha256(tmp_path / "rows")


def test_an_artifact_is_kept_as_it_was(spool: Spool, tmp_path: Path) -> None:
    partial = tmp_path / ".report.partial"
    partial.mkdir()
    (partial / "index.html").write_text("before")
    tracking.log_artifact(partial, "report")
    tracking.log_artifact(partial / "index.html")
    (partial / "index.html").write_text("after")
    partial.rename(tmp_path / "report")
    folder, file = (spool.path.parent / event["path"] for event in events(spool))
    assert (folder / "index.html").read_text() == file.read_text() == "before"
    assert folder.name == "report"
    assert file.name == "index.html"


def test_the_end_tells_what_was_used(spool: Spool) -> None:
    spool.end("FINISHED")
    metrics = {event["key"]: event["value"] for event in events(spool)[:-1]}
    assert metrics["system/peak_rss_mb"] > 10
    assert metrics["system/cpu_seconds"] > 0
    assert events(spool)[-1]["status"] == "FINISHED"


def test_a_spool_is_locked_until_its_end(spool: Spool) -> None:
    with spool.path.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        spool.end("FINISHED")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_the_commit_is_told(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "commit", lambda: "c0ffee")
    monkeypatch.setattr(git, "dirty", lambda: True)
    spool.start({}, {})
    tags = events(spool)[0]["tags"]
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert tags["git.dirty"] == "true"
