"""What `dvc repro` makes of a run that was killed; the short form of benchmarks/kills.py."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.lineage import hashes

if TYPE_CHECKING:
    from registered_project import RegisteredProject

pytest_plugins = ("registered_project",)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_run_ends_where_it_would_have(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills as killing

    monkeypatch.chdir(Path(sys.executable).parent)
    for left in ("dvc.lock", "models", "data/ingested", ".dvc/cache", ".tunetrail", ".dvc/tmp"):
        path = registered.root / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert killing.disturb(registered.root, kills, random.Random(0)) == kills


@pytest.mark.parametrize("how", [["repro"], ["repro", "--force"]])
def test_a_kill_between_the_two_renames_of_a_folder(
    registered: RegisteredProject, how: list[str]
) -> None:
    """Nothing is in place then. DVC misses the output, and brings it back or runs the stage."""
    before = hashes.manifest(Path("models/sft"))
    lock = Path("dvc.lock").read_bytes()
    Path("models/sft").rename("models/.sft.old")
    Path("models/.sft.partial").mkdir()
    registered.dvc(*how)
    assert hashes.manifest(Path("models/sft")) == before
    assert Path("dvc.lock").read_bytes() == lock
    if "--force" in how:
        assert not Path("models/.sft.old").exists()
        assert not Path("models/.sft.partial").exists()
