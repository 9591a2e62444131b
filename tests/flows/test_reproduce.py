"""A version is built anew, and compared output by output."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from typer.testing import CliRunner

from flows import reproduce as reproduction
from flows.cli import TOLERANCE, app
from flows.reproduce import Reproduction
from tasks.lineage import git, review, store, verify
from tasks.lineage.stage import FAULT, GATE, MISUSE, StageError

if TYPE_CHECKING:
    from registered_project import RegisteredProject

pytest_plugins = ("registered_project",)

REPOSITORY = Path(__file__).parents[2]


def reproduce(reference: str, **options: Any) -> Reproduction:
    settings: dict[str, Any] = {
        "keep": False,
        "folder": None,
        "any_environment": False,
        "tolerance": TOLERANCE,
        "tell": print,
    }
    return reproduction.reproduce(reference, **(settings | options))


def answers(reference: str) -> list[dict[str, Any]]:
    """All that were ever given, oldest first, as a promotion reads them."""
    client = store.connect()
    return review.reproductions(client, client.get_model_version(*reference.split("@")))


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a trusted key had signed the versions of this project."""
    report = verify.Report(model="", number=1, identity="", signer="", findings=[])
    monkeypatch.setattr(verify, "check", lambda *_: report)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def count_runs() -> int:
    client = store.connect()
    return len(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_identical_from_a_fresh_clone(
    registered: RegisteredProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """No cache and no state, but a remote and the team's MLflow, which gets no run from it; then
    once more on a machine that computes a little otherwise."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered.root}/mlflow.db")
    clone = registered.root.with_name("clone")
    registered.call("git", "clone", "--quiet", str(registered.root), str(clone))
    monkeypatch.chdir(clone)
    runs = count_runs()

    done = reproduce(registered.reference)

    assert (done.answer, done.exit_code, done.stage) == ("identical", 0, None)
    said = capsys.readouterr().out
    assert "[1/3] ingest: Read the rows\n      identical, " in said
    assert "[3/3] register: Write the provenance\n" in said
    tags = registered.tags()
    assert tags["reproduced"] == "identical"
    assert tags["reproduced.identity"] == tags["identity"]
    assert tags["reproduced.commit"] == answers(registered.reference)[0]["commit"]
    assert "2 threads" in tags["reproduced.machine"]
    assert tags["reproduced.environment"] == "locked"
    assert count_runs() == runs
    assert review.forged(answers(registered.reference)[0], clone) is None
    assert registered.call("git", "status", "--porcelain") == ""
    assert not Path(".dvc/cache").exists()
    place = Path(said.partition(", in ")[2].splitlines()[0])
    assert not place.exists()

    monkeypatch.setenv("OTHER_MACHINE", "1e-5")
    done = reproduce(registered.reference)

    assert (done.answer, done.exit_code, done.stage) == ("equivalent", 0, "sft")
    assert done.outputs == ["models/curves/sft.csv", "models/sft", "models/sft.metrics.json"]
    assert done.distance.weights.absolute == pytest.approx(3e-4, rel=1e-3)
    assert done.distance.weights.where == "models/sft/model.safetensors: weight"
    assert done.distance.metrics.absolute == pytest.approx(1e-5)
    text = "\n".join(done.lines())
    assert text.startswith("  first stage that differs: sft\n")
    assert "largest weight difference: 0.0003 absolute (models/sft/model.safetensors" in text
    assert "tolerance: 0.001" in text
    assert registered.tags()["reproduced"] == "equivalent"
    assert registered.tags()["reproduced.count"] == "2"
    assert [entry["answer"] for entry in answers(registered.reference)] == [
        "identical",
        "equivalent",
    ]


def test_numbers_beyond_the_tolerance_are_different(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = {"cpu": {"model": "Z80", "flags": []}, "libraries": {"torch": "0.1"}}
    reference = registered.register(facts)
    monkeypatch.setenv("OTHER_MACHINE", "0.1")
    done = reproduce(reference, folder=tmp_path / "tree", tolerance=0.01)
    assert (done.answer, done.exit_code, done.stage) == ("different", GATE, "sft")
    assert done.causes[0].startswith("machine cpu.model: was 'Z80', is ")
    assert any(cause.startswith("machine libraries.torch: was '0.1'") for cause in done.causes)
    assert registered.tags(reference)["reproduced"] == "different"
    assert (tmp_path / "tree" / "models" / "sft").is_dir()
    with pytest.raises(StageError, match="tree is not empty; name a folder that does not exist"):
        reproduce(reference, folder=tmp_path / "tree")


def test_what_is_no_number_cannot_be_close(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("OTHER_TEXT", "by another rule")
    done = reproduce(registered.reference)
    assert (done.answer, done.stage, done.outputs) == ("different", "sft", ["models/sft"])
    assert done.distance.unequal == [
        "models/sft/note.txt has other bytes, and is no file of numbers"
    ]
    assert done.causes == ["same inputs, same machine: the stage does not give the same twice"]
    assert "what follows it is not built" in capsys.readouterr().out


def test_a_stage_that_fails_says_why(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_RULES", "fail")
    with pytest.raises(StageError) as raised:
        reproduce(registered.reference)
    assert raised.value.exit_code == FAULT
    assert str(raised.value).startswith(
        "stage sft fails in the rebuild, where it did not when the version was made:\n"
        "a row is too long; shorten it\n"
    )
    assert "reproduced" not in registered.tags()


def test_uncommitted_changes_are_applied(registered: RegisteredProject, signed: None) -> None:
    """Also a change of the lock file, which then is not what is installed."""
    replace(Path("tasks/sft.py"), "np.ones(3", "np.zeros(3")
    replace(Path("requirements.lock"), "numpy==", "numpy==0.0.")
    registered.dvc("repro")
    reference = registered.register()
    with pytest.raises(StageError) as raised:
        reproduce(reference)
    assert raised.value.exit_code == FAULT
    assert "1 packages are not those of requirements.lock at that commit:\n  numpy is " in str(
        raised.value
    )
    done = reproduce(reference, any_environment=True)
    assert done.answer == "identical"
    assert registered.tags(reference)["reproduced.environment"] == "other"
    *_, entry = answers(reference)
    assert entry["changes_applied"] is True
    assert entry["other_packages"][0].startswith("numpy is ")


def test_changes_that_no_trusted_key_signed_are_not_run(registered: RegisteredProject) -> None:
    replace(Path("tasks/sft.py"), "np.ones(3", "np.zeros(3")
    registered.dvc("repro")
    reference = registered.register()
    with pytest.raises(StageError, match=r"which would be run here, and its signature does not"):
        reproduce(reference)


@pytest.mark.parametrize(
    ("file", "old", "new", "stage", "cause"),
    [
        ("tasks/sft.py", "Weights from", "Weight from", "sft", "code tasks/sft.py: was "),
        ("params.yaml", "  lora_alpha: ", "  lora_alpha: 1", "sft", "params sft.lora_alpha: was "),
        ("requirements.lock", "numpy", "# a comment\nnumpy", "sft", "lock requirements.lock: was "),
        ("data/raw/rows.txt", "a row", "one row", "ingest", "data data/raw: was "),
    ],
)
def test_what_the_commit_does_not_have_is_named_and_nothing_runs(
    registered: RegisteredProject,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    file: str,
    old: str,
    new: str,
    stage: str,
    cause: str,
) -> None:
    """As when a version was registered with changes that its statement does not hold."""
    if file.startswith("data"):  # then git has it, and DVC only its hash
        registered.dvc("remove", "data/raw.dvc")
        registered.commit()
    replace(Path(file), old, new)
    registered.dvc("repro")
    clean = dataclasses.replace(git.work_tree([], 10**6), changed=[], changes=b"")
    monkeypatch.setattr(git, "work_tree", lambda *_: clean)
    done = reproduce(registered.register())
    assert (done.answer, done.stage, done.outputs) == ("different", stage, [])
    assert done.causes[0].startswith(cause)
    assert "[1/3]" not in capsys.readouterr().out


def test_raw_data_is_brought_by_its_hash(registered: RegisteredProject) -> None:
    """What matters is the data that was read, not what data/raw.dvc says at that commit."""
    raw = "data/raw"
    replace(Path("data/raw/rows.txt"), "a row", "one row")
    registered.dvc("repro")
    recorded = reproduction.read(store.connect(), registered.register())
    tree = reproduction.CleanTree.at(str(git.commit()), b"", registered.root.with_name("tree"))
    where = reproduction.dvc_storage.storage()
    assert tree.bring({raw: recorded.sources[raw]}, where) == []
    assert (tree.root / raw / "rows.txt").read_text() == "one row\n" * 5


def test_data_that_nobody_has(registered: RegisteredProject) -> None:
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(registered.remote)
    with pytest.raises(StageError) as raised:
        reproduce(registered.reference)
    assert raised.value.exit_code == FAULT
    assert str(raised.value).startswith("data/raw (")
    assert f"is neither in git nor, undamaged, in {registered.root}/.dvc/cache, " in str(
        raised.value
    )
    assert "`dvc push` it from where the version was registered" in str(raised.value)


def test_a_commit_that_is_not_here(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = dataclasses.replace(git.work_tree([], 10**6), commit="0" * 40)
    monkeypatch.setattr(git, "work_tree", lambda *_: clean)
    reference = registered.register()
    with pytest.raises(StageError) as raised:
        reproduce(reference)
    assert raised.value.exit_code == FAULT
    assert str(raised.value).startswith(f"commit {'0' * 40} is not in this repository; `git fetch")


def test_a_commit_that_no_branch_has(registered: RegisteredProject, tmp_path: Path) -> None:
    left = str(git.commit())
    registered.call("git", "checkout", "--quiet", "--orphan", "other")
    registered.call("git", "commit", "--quiet", "--message", "history was rewritten")
    registered.call("git", "branch", "--delete", "--force", "master")
    assert reproduction.CleanTree.at(left, b"", tmp_path / "tree").md5("params.yaml")


def test_a_patch_that_does_not_fit(registered: RegisteredProject, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="recorded changes do not fit commit"):
        reproduction.CleanTree.at(str(git.commit()), b"nonsense", tmp_path / "tree")


def test_a_project_below_the_top_of_its_repository(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    shutil.copytree(registered.root, top / "models-of-us")
    shutil.rmtree(top / "models-of-us" / ".git")
    registered.call("git", "init", "--quiet", str(top))
    monkeypatch.chdir(top / "models-of-us")
    registered.dvc("config", "--local", "core.analytics", "false")
    registered.commit()
    tree = reproduction.CleanTree.at(str(git.commit()), b"", tmp_path / "tree")
    assert tree.root == tmp_path / "tree" / "models-of-us"
    assert (tree.root / "dvc.yaml").is_file()


def test_a_submodule_is_brought(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    registered.call("git", "init", "--quiet", str(inner))
    (inner / "rules.txt").write_text("one\n")
    registered.call("git", "-C", str(inner), "add", "--all")
    registered.call("git", "-C", str(inner), "commit", "--quiet", "--message", "first")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    registered.call("git", "submodule", "--quiet", "add", str(inner), "rules")
    tree = reproduction.CleanTree.at(registered.commit(), b"", tmp_path / "tree")
    assert (tree.root / "rules" / "rules.txt").read_text() == "one\n"


def test_evidence_that_was_exchanged(registered: RegisteredProject) -> None:
    store.connect().set_model_version_tag(registered.model, "1", "identity", "0" * 64)
    with pytest.raises(StageError, match=r"is not the one .*; `tunetrail verify "):
        reproduce(registered.reference)


def test_a_version_without_a_statement(registered: RegisteredProject) -> None:
    client = store.connect()
    run = client.create_run(client.get_experiment_by_name("shipments").experiment_id)
    run_id = run.info.run_id
    client.log_artifact(run_id, "models/provenance.json")
    client.create_model_version(registered.model, f"runs:/{run_id}", run_id=run_id)
    with pytest.raises(StageError, match=r"@2 has no statement.json in its run .*; register"):
        reproduce(f"{registered.model}@2")


def test_the_champion_is_handed_over_to_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean tree reaches neither this cache nor MLflow."""

    class Stop(Exception):
        pass

    def hand_over(identity: str, root: Path) -> None:
        raise Stop(f"{identity[:4]} to {root}")

    monkeypatch.setattr(reproduction.champion, "hand_over", hand_over)
    evaluated = {
        "stage": "evaluate",
        "params": {"evaluate": {"champion": "abcd" * 16}},
        "inputs": {},
        "outputs": {},
    }
    recorded = SimpleNamespace(stages={"evaluate": evaluated}, sources={})
    tree = SimpleNamespace(root=Path("tree"), read_params=lambda: ({}, {}))
    with pytest.raises(Stop, match="abcd to tree"):
        reproduction._build(tree, recorded, 0.0, print)
    evaluated["params"]["evaluate"]["champion"] = None
    assert reproduction._champion(recorded) is None


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["reproduce", *arguments])

    def test_answers_become_exit_codes(
        self, registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for answer, code in (("identical", 0), ("equivalent", 0), ("different", GATE)):
            done = Reproduction(answer, TOLERANCE, causes=["machine cpu: was 'a', is 'b'"])
            monkeypatch.setattr(reproduction, "reproduce", lambda *_, done=done, **__: done)
            shown = self.run(registered.reference)
            assert shown.exit_code == code
            assert shown.stdout.startswith(f"{registered.reference} is {answer}")
            assert "machine cpu: was 'a', is 'b'" in shown.stdout

    def test_what_is_no_version(self, registered: RegisteredProject) -> None:
        for reference in ("shipments", f"{registered.model}@7"):
            shown = self.run(reference)
            assert shown.exit_code == MISUSE
            assert shown.stderr

    def test_mlflow_out_of_reach(
        self, registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        shown = self.run(registered.reference)
        assert shown.exit_code == FAULT
        assert shown.stderr.startswith("MLflow at http://127.0.0.1:9 does not answer")


def test_what_it_started_ends_with_it(registered: RegisteredProject, tmp_path: Path) -> None:
    def at_work() -> list[psutil.Process]:
        found = []
        for process in psutil.Process(command.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if "tasks.sft" in process.cmdline():
                    found.append(process)
        return found

    line = "from flows.cli import main; main()"
    options = [registered.reference, "--folder", str(tmp_path / "built")]
    command = subprocess.Popen(
        [sys.executable, "-c", line, "reproduce", *options],
        env={**os.environ, "OTHER_RULES": "wait", "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (stages := at_work()):
        assert time.monotonic() < until
        assert command.poll() is None
        time.sleep(0.1)
    command.terminate()
    _, said = command.communicate(timeout=30)
    assert (command.returncode, "nothing is noted" in said) == (128 + 15, True)
    assert psutil.wait_procs(stages, timeout=30)[1] == []
    assert "reproduced" not in registered.tags()
