"""The walk over dvc.yaml, on a project of three trivial stages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zc.lockfile
from ruamel.yaml import YAML

from flows import dvc_dag
from flows.dvc_dag import DagError, StageFailed, plan, reproduce
from tasks.lineage.stage import FAULT, GATE, MISUSE

REPOSITORY = Path(__file__).parents[2]
ORDER = ["base", "ingest", "evaluate"]


def walk() -> list[str]:
    return [reproduce(stage.name) for stage in plan(None)]


def dvc(*arguments: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments, "--quiet"], check=True, env=environment
    )


def test_stages_come_after_what_they_need(project: Path) -> None:
    base, ingest, evaluate = plan(None)
    assert [base.name, ingest.name, evaluate.name] == ORDER
    assert (ingest.needs, evaluate.needs) == (("base",), ("ingest",))
    assert (base.desc, base.retries, ingest.retries) == ("Bring the base model", 1, 0)
    assert "models/verdict.json" in evaluate.outs
    assert "models/evaluate.metrics.json" in evaluate.outs


def test_the_shipped_workflow_is_written_in_the_order_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = (REPOSITORY / "dvc.yaml").read_text()
    names = [stage.name for stage in plan(None)]
    assert sorted(names, key=lambda name: text.index(f"\n  {name}:\n")) == names
    assert names[0] == "base"
    assert names[-1] == "register"


def test_new_chats_leave_the_shipped_cpt_as_it_is() -> None:
    """What cpt depends on holds no chats, so DVC has no reason to train it again."""
    stages = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert [dep for dep in stages["cpt"]["deps"] if dep.startswith("data/")] == [
        "data/corpus.jsonl"
    ]
    assert "data/corpus.jsonl" in stages["format"]["outs"]
    assert "data/corpus.jsonl" in stages["evaluate"]["deps"]


def test_a_target_brings_what_it_needs_and_no_more(project: Path) -> None:
    assert [stage.name for stage in plan("ingest")] == ["base", "ingest"]
    assert [stage.name for stage in plan("base")] == ["base"]


def test_an_unknown_stage_is_met_with_the_known_ones(project: Path) -> None:
    with pytest.raises(DagError) as error:
        plan("ingst")
    assert str(error.value) == "ingst is no stage of dvc.yaml; did you mean ingest?"
    with pytest.raises(DagError) as error:
        plan("xyz")
    assert str(error.value) == "xyz is no stage of dvc.yaml; known: base, ingest, evaluate"


def test_an_unreadable_workflow_says_where_to_look(project: Path) -> None:
    Path("dvc.yaml").write_text("stages: [\n")
    with pytest.raises(DagError, match=r"cannot read the workflow: .*'dvc\.yaml'.*; `dvc dag`"):
        plan(None)


def test_a_stage_runs_once_and_is_restored_when_its_outputs_are_lost(
    project: Path, calls: Callable[[], list[str]]
) -> None:
    started: list[str] = []
    assert reproduce("base", on_start=lambda: started.append("base")) == "ran"
    assert reproduce("base", on_start=lambda: started.append("again")) == "cached"
    Path("models/base").unlink()
    assert reproduce("base", on_start=lambda: started.append("again")) == "restored"
    assert started == calls() == ["base"]


def test_a_return_to_earlier_inputs_is_restored(project: Path) -> None:
    walk()
    source = Path("data/raw/corpus.jsonl")
    before = source.read_text()
    source.write_text("changed\n")
    assert walk()[:2] == ["ran", "ran"]
    source.write_text(before)
    assert walk()[:2] == ["restored", "restored"]


def test_force_runs_what_has_not_changed(project: Path, calls: Callable[[], list[str]]) -> None:
    started: list[str] = []
    reproduce("base")
    assert reproduce("base", force=True, on_start=lambda: started.append("base")) == "ran"
    assert (started, calls()) == (["base"], ["base", "base"])


def test_commands_run_on_this_python(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as where the environment is not activated
    reproduce("base")
    said = capfd.readouterr().out
    assert said == f"running base with {Path(sys.executable).with_name('python')}\n"


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [(1, GATE), (2, MISUSE), (3, FAULT), (143, FAULT)],
    ids=["gate", "bad input", "environment", "stopped"],
)
def test_a_failure_carries_the_message_of_the_stage(
    project: Path, status: int, exit_code: int
) -> None:
    Path("fail-base").write_text(f"{status} 1 the hub is gone; try again")
    with pytest.raises(StageFailed) as failure:
        reproduce("base")
    assert failure.value.stage == "base"
    assert failure.value.message == "the hub is gone; try again"
    assert failure.value.exit_code == exit_code


def test_without_a_message_of_the_stage_the_failure_has_that_of_dvc(project: Path) -> None:
    Path("fail-base").write_text("2 1 of an earlier failure")
    with pytest.raises(StageFailed):
        reproduce("base")
    Path("fail-base").write_text("1 1 ")
    with pytest.raises(StageFailed) as failure:
        reproduce("base")
    command = "python stage.py base models/base --raw data/raw"
    assert failure.value.message == f"failed to run: {command}, exited with 1"
    assert failure.value.exit_code == FAULT  # no gate speaks without a message


def test_a_killed_stage_is_told_apart(project: Path) -> None:
    Path("fail-base").write_text("137 1 ")
    with pytest.raises(StageFailed, match="SIGKILL: the system ends so what takes more memory"):
        reproduce("base")


def test_a_missing_input_is_bad_input(project: Path) -> None:
    shutil.rmtree("data/raw")
    with pytest.raises(StageFailed) as failure:
        reproduce("base")
    assert failure.value.message == "data/raw, which base needs, does not exist"
    assert failure.value.exit_code == MISUSE


def test_a_damaged_rwlock_is_named_with_the_remedy(project: Path) -> None:
    dvc_dag.RWLOCK.write_text('{"write": {"mod')
    with pytest.raises(StageFailed) as failure:
        reproduce("base")
    assert failure.value.message == (
        ".dvc/tmp/rwlock is damaged; see that no dvc or tunetrail runs, then `rm .dvc/tmp/rwlock`"
    )
    assert failure.value.exit_code == FAULT
    dvc_dag.RWLOCK.unlink()
    assert reproduce("base") == "ran"


def test_another_dvc_at_work_is_an_environment_fault(project: Path) -> None:
    lock = zc.lockfile.LockFile(".dvc/tmp/lock")
    try:
        with pytest.raises(StageFailed, match="another dvc or tunetrail is at work") as failure:
            reproduce("base")
    finally:
        lock.close()
    assert failure.value.exit_code == FAULT


def test_the_lock_file_is_that_of_dvc_repro(project: Path) -> None:
    dvc("repro")
    by_dvc = Path("dvc.lock").read_bytes()
    assert walk() == ["cached", "cached", "cached"]
    assert Path("dvc.lock").read_bytes() == by_dvc
    Path("dvc.lock").unlink()
    shutil.rmtree(".dvc/cache")
    assert walk() == ["ran", "ran", "ran"]
    assert Path("dvc.lock").read_bytes() == by_dvc


def test_added_data_is_recorded_with_the_stage_that_reads_it(project: Path) -> None:
    dvc("add", "data/raw")
    recorded = Path("data/raw.dvc").read_text()
    assert [stage.name for stage in plan(None)] == ORDER
    Path("data/raw/more.jsonl").write_text("{}\n")
    assert reproduce("base") == "ran"
    assert Path("data/raw.dvc").read_text() != recorded
    assert reproduce("base") == "cached"
