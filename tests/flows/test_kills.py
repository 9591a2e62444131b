"""What `dvc repro` makes of a run that was killed; the short form of benchmarks/kills.py."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
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
    assert killing.disturb(registered.root, kills, seed=0) == kills


def test_a_lock_file_that_dvc_emptied(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between its emptying and its writing: DVC refuses it until it is removed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills as killing

    before = killing.hashes(registered.root)
    Path("dvc.lock").write_text("")
    remedies = Counter[str]()
    assert killing.recover(registered.root, remedies) == 2
    assert remedies == {"rm dvc.lock": 1}
    assert killing.hashes(registered.root) == before


def test_two_writers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that were both let past the stage's lock, as if there were none."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kills as killing

    write = (
        "import sys; from pathlib import Path; from tasks.lineage import tracking\n"
        "spool = tracking.Spool(Path('.tunetrail/spool'), 'sft', 'x'); print(flush=True)\n"
        "sys.stdin.read()"
    )
    with contextlib.ExitStack() as stack:
        for count in (1, 2):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", write],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert process.stdout
            assert process.stdout.readline()
            assert {stage: len(pids) for stage, pids in killing.writers(tmp_path).items()} == {
                "sft": count
            }
            stack.callback(process.communicate)
    assert killing.writers(tmp_path) == {}


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
