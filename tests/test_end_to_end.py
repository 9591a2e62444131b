"""The whole DAG once, on the shipped data, in a clone: what the README promises of `make run`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DO_NOT_TRACK": "1",
    "LANG": "C.UTF-8",
}


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        command,
        cwd=folder,
        env={**ENVIRONMENT, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    return call(folder, "git", *who, *arguments)


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, committed anew: no cache, no outputs, an empty home."""
    folder = tmp_path_factory.mktemp("whole") / "clone"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    assert git(folder, "commit", "--quiet", "--message", "as it is").returncode == 0
    return folder


@pytest.fixture(scope="module")
def ran(clone: Path) -> subprocess.CompletedProcess[str]:
    """`tunetrail run` in the clone."""
    done = call(clone, "tunetrail", "run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def test_the_committed_lock_stays_as_it_is(
    clone: Path, ran: subprocess.CompletedProcess[str]
) -> None:
    diff = git(clone, "diff", "--exit-code", "dvc.lock")
    assert diff.returncode == 0, diff.stdout


def test_the_committed_metrics_stay_as_they_are(
    clone: Path, ran: subprocess.CompletedProcess[str]
) -> None:
    diff = git(clone, "diff", "--exit-code", "--", "models")
    assert diff.returncode == 0, diff.stdout


def test_the_tuned_model_is_good(clone: Path, ran: subprocess.CompletedProcess[str]) -> None:
    metrics = json.loads((clone / "models/evaluate.metrics.json").read_text())["candidates"]
    simpler = {"base_few_shot", "base_retrieval", "classical"}
    assert set(metrics) == {"base", "cpt", "sft", "dpo", *simpler}
    for candidate, splits in metrics.items():
        general = set() if candidate in simpler else {"regression"}
        assert {split for split, found in splits.items() if found} == {
            "test",
            "hard_test",
        } | general
        for name in ("category_accuracy", "eta_accuracy", "json_valid", "exact_match"):
            score = splits["test"][name]
            assert score["low"] <= score["value"] <= score["high"]
    final = metrics["dpo"]["test"]
    assert final["json_valid"]["value"] >= 0.99
    assert final["category_accuracy"]["value"] >= 0.90
    assert metrics["base"]["test"]["category_accuracy"]["value"] < 0.5


def test_the_result_is_shown(ran: subprocess.CompletedProcess[str]) -> None:
    for word in ("base", "cpt", "sft", "dpo", "category_accuracy", "models/report/index.html"):
        assert word in ran.stdout


def test_a_version_is_registered(clone: Path, ran: subprocess.CompletedProcess[str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}", f"sqlite:///{clone / 'mlflow.db'}")
    (version,) = client.search_model_versions("name='shipments-candidates'")
    assert version.tags["verdict"] == "pass"
    runs = {tag.removeprefix("run:") for tag in version.tags if tag.startswith("run:")}
    assert {"base", "format", "cpt", "sft", "dpo", "merge", "evaluate"} <= runs


def test_nothing_runs_twice(clone: Path, ran: subprocess.CompletedProcess[str]) -> None:
    again = call(clone, "dvc", "repro")
    assert again.returncode == 0
    assert "up to date" in again.stdout + again.stderr
    assert "Running stage" not in again.stdout
    assert git(clone, "diff", "--exit-code", "dvc.lock").returncode == 0


def changed_stages(clone: Path) -> set[str]:
    return set(json.loads(call(clone, "dvc", "status", "--json").stdout))


def test_a_value_reruns_its_stage_alone_and_a_comment_nothing(
    clone: Path, ran: subprocess.CompletedProcess[str]
) -> None:
    params = clone / "params.yaml"
    original = params.read_text()
    try:
        params.write_text(original.replace("lora_r: 32", "lora_r: 16"))
        assert changed_stages(clone) == {"sft"}  # what follows sees another adapter
        params.write_text("# a comment\n" + original)
        (clone / "data/raw/README.md").write_text("another text")
        (clone / "docs/log.md").write_text("another text")
        assert changed_stages(clone) == set()
    finally:
        params.write_text(original)
