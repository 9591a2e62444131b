from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tasks.lineage import git


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def command(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_outside_a_repository_there_is_no_commit(outside: Path) -> None:
    assert git.commit() is None
    assert not git.dirty()


def test_commit_and_changes(outside: Path) -> None:
    command("init")
    assert git.commit() is None
    (outside / "file").write_text("1")
    command("add", "file")
    command("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "first")
    assert git.commit() == command("rev-parse", "HEAD")
    assert not git.dirty()
    (outside / "untracked").write_text("1")
    assert not git.dirty()
    (outside / "file").write_text("2")
    assert git.dirty()


def test_the_author_is_gits(outside: Path) -> None:
    command("init")
    command("config", "user.email", "ada@example.org")
    assert git.author() == "ada@example.org"
