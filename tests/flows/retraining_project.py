"""A project of four quick stages with a champion in MLflow, and a drift check of what arrived.

A plugin, for the tests in this folder that name it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from registered_project import INGEST, REPOSITORY, SFT, _version, call, dvc

from tasks.lineage import hashes, store
from tasks.lineage.stage import STATE

DVC_YAML = """\
stages:
  ingest:
    desc: Read the rows
    cmd: python -m tasks.ingest --raw data/raw --out data/ingested
    deps: [data/raw, tasks/ingest.py]
    params: [ingest, format]
    outs: [data/ingested, models/records/ingest.json]
  sft:
    desc: Train
    cmd: python -m tasks.sft --data data/ingested --out models/sft --curve models/curves/sft.csv
    deps: [data/ingested, tasks/sft.py, requirements.lock]
    params: [sft, compute]
    outs: [models/sft, models/curves/sft.csv, models/records/sft.json]
    metrics: [models/sft.metrics.json: {cache: false}]
  evaluate:
    desc: Compare with the champion
    cmd: python -m tasks.evaluate --model models/sft --verdict models/verdict.json
    deps: [models/sft, tasks/evaluate.py]
    params: [evaluate]
    outs: [models/records/evaluate.json]
    metrics: [models/evaluate.metrics.json: {cache: false}, models/verdict.json: {cache: false}]
  register:
    desc: Register it
    cmd: >-
      python -m tasks.register --records models/records --verdict models/verdict.json
      --out models/provenance.json
    deps: [models/records/ingest.json, models/records/sft.json, models/records/evaluate.json,
           models/verdict.json, tasks/register.py]
    params: [register]
    outs: [models/provenance.json]
"""

EVALUATE = '''\
"""A verdict that says whom it was compared with."""
import json
import os
import time
from pathlib import Path
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Evaluate

def run(model: Path, verdict: Out, evaluate: Evaluate) -> Metrics:
    """A verdict."""
    while Path(os.environ.get("HELD_UP", "/nowhere")).exists():
        time.sleep(0.1)
    if why := os.environ.get("NO_VERDICT"):
        raise stage.GateError(why)
    gate = {"gate": "metric", "metric": "exact_match", "split": "test", "value": 0.5, "limit": 0.8,
            "passed": False, "why": f"0.5 is less than 0.8, champion {evaluate.champion}"}
    verdict.write_text(json.dumps({"candidate": "sft", "verdict": "fail", "gates": [gate],
                                   "contaminated_share": {"value": 0.0, "low": 0.0, "high": 0.1}}))
    score = {"exact_match": {"value": 0.5, "low": 0.4, "high": 0.6}}
    return {"task": "structured", "primary": "exact_match", "final": "sft",
            "candidates": {"sft": {"test": score}}, "forgetting": None,
            "comparisons": {"simpler": None, "champion": None}}

if __name__ == "__main__":
    stage.main(run)
'''

REGISTER = '''\
"""Join the records, and register what they tell of, if MLflow answers."""
import json
from pathlib import Path
from tasks.lineage import courier, git, hashes, machine, provenance, stage, statement, store
from tasks.lineage.console import log
from tasks.lineage.stage import Metrics, Out
from tasks.params import Register

def run(records: Path, verdict: Path, out: Out, register: Register) -> Metrics:
    """Join the records."""
    stages = [json.loads((records / f"{n}.json").read_text()) for n in ("ingest", "sft", "evaluate")]
    params = {key: value for stage in stages for key, value in stage["params"].items()}
    document = {
        "schema": 1, "stages": stages, "params_sha256": hashes.sha256_json(params),
        "environment_sha256": hashes.sha256(Path("requirements.lock")),
        "chat_contract_sha256": "0" * 64, "base": {"source": "scratch"},
    }
    provenance.write(document, out)
    try:
        client = store.connect()
    except store.Unreachable as error:
        log.warning("%s", error)
        return {}
    identity = provenance.identity(out)
    name = f"{register.name}-candidates"
    if client.search_model_versions(f"name = '{name}' and tags.identity = '{identity}'"):
        return {}
    run_id = client.create_run(courier.experiment(client, register.name)).info.run_id
    said = statement.build(
        name=name, files={"provenance.json": identity}, facts=document, verdict={"verdict": "fail"},
        work_tree=git.work_tree(["dvc.lock", "models"], 1_000_000), runs={}, datasets={},
        machine=machine.facts(), author=str(git.author()), run_id=run_id, finished=0,
    )
    for file, content in (("provenance.json", out.read_text()), ("statement.json", json.dumps(said))):
        client.log_text(run_id, content, file)
    client.set_terminated(run_id)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{run_id}", run_id=run_id, tags={"identity": identity})
    return {}

if __name__ == "__main__":
    stage.main(run)
'''


def rows(first: int, count: int) -> str:
    """Lines of shipments.jsonl."""
    made = [
        {
            "id": f"{number}",
            "received": f"2026-09-{1 + number % 28:02}T00:00:00Z",
            "channel": "mail",
            "text": f"truck {number} is late",
            "category": "delivery_delay",
            "eta": "1-2d",
        }
        for number in range(first, first + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made)


@dataclass(frozen=True)
class Project:
    """A work tree, the current folder, with a champion and something that arrived."""

    root: Path
    remote: Path

    @property
    def folder(self) -> Path:
        return self.root / STATE / "retraining"

    def identity(self) -> str:
        return hashes.sha256(self.root / "models" / "provenance.json")

    def arrive(self, text: str, name: str = "new.jsonl", fired: bool = True) -> str:
        """Put a file into data/incoming, and write what a check of it would. Returns its name."""
        path = self.root / "data" / "incoming" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        digest = hashes.sha256(path)
        data = hashlib.sha256(json.dumps([digest]).encode()).hexdigest()
        check = f"20261122T134501Z-{data[:8]}"
        folder = self.root / STATE / "drift" / check
        folder.mkdir(parents=True, exist_ok=True)
        file = {
            "file": name, "like": "shipments.jsonl", "sha256": digest, "bytes": len(text),
            "rows": len(text.splitlines()), "rejected": 0,
        }  # fmt: skip
        document = {
            "schema": 1,
            "check": check,
            "at": "2026-11-22T13:45:01Z",
            "champion": {"model": "shipments", "version": 1, "identity": self.identity()},
            "data": {"id": data, "files": [file]},
            "fired": fired,
            "reasons": ["the word truck is new"] if fired else [],
            "statistics": {},
            "quality": None,
        }
        (folder / "drift.json").write_text(json.dumps(document))
        (folder / "report.html").write_text("<html>")
        return check

    def versions(self) -> list[str]:
        found = store.connect().search_model_versions("name = 'shipments-candidates'")
        return sorted(str(version.version) for version in found)

    def tags(self, number: str) -> dict[str, str]:
        return dict(store.connect().get_model_version("shipments-candidates", number).tags)

    def git(self, *arguments: str) -> str:
        return call("git", *arguments, cwd=self.root).strip()


@pytest.fixture(scope="session")
def made_project(made_once: Callable[..., Path]) -> Path:
    """The project, built and registered once; copied for each test."""
    return made_once("retraining", _make)


def _make(folder: Path) -> None:
    root = folder / "project"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "tasks" / "lineage", root / "tasks" / "lineage", ignore=skipped)
    (root / "tasks" / "dataset").mkdir()
    for name in ("__init__.py", "params.py", "dataset/__init__.py", "dataset/places.py"):
        if (REPOSITORY / "tasks" / name).exists():
            shutil.copyfile(REPOSITORY / "tasks" / name, root / "tasks" / name)
    (root / "tasks" / "lineage" / "courier.py").write_text(
        (REPOSITORY / "tasks" / "lineage" / "courier.py")
        .read_text()
        .replace("main()\n    os", "os")
    )
    read = INGEST.replace('raw.glob("*.txt")', 'raw.rglob("*.jsonl")')
    for name, code in (
        ("ingest", read), ("sft", SFT), ("evaluate", EVALUATE), ("register", REGISTER),
    ):  # fmt: skip
        (root / "tasks" / f"{name}.py").write_text(code)
    for name in ("params.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(REPOSITORY / name, root / name)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "requirements.lock").write_text(f"numpy=={_version('numpy')}\n")
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    (raw / "shipments.jsonl").write_text(rows(0, 30))
    about = {"id": "1", "received": "2026-08-01"}
    pair = {"text": "late", "chosen": "a", "rejected": "b", "fault": "c"}
    for name, row in (
        ("preferences.jsonl", about | pair),
        ("corpus.jsonl", {"id": "1", "title": "t", "text": "a text"}),
        ("general.jsonl", {"id": "1", "instruction": "ask", "output": "answer"}),
    ):
        (raw / name).write_text(json.dumps(row) + "\n")
    call("git", "init", "--quiet", str(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("PYTHONPATH", raising=False)
        store.connect()
        dvc("init")
        dvc("config", "core.analytics", "false")
        dvc("remote", "add", "--default", "shared", "../remote")
        dvc("remote", "modify", "shared", "verify", "true")
        call("git", "add", "--all")
        call("git", "commit", "--quiet", "--message", "begin")
        dvc("repro")
        dvc("push")
        call("git", "add", "--all")
        call("git", "commit", "--quiet", "--message", "built")
        shutil.rmtree(".tunetrail")


@pytest.fixture
def drifted(made_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the project as the current folder; MLflow's artifacts stay where they were."""
    shutil.copytree(made_project, tmp_path / "copy", symlinks=True)
    made = Project(tmp_path / "copy" / "project", tmp_path / "copy" / "remote")
    monkeypatch.chdir(made.root)
    for variable in ("MLFLOW_TRACKING_URI", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return made


def start(project: Project, check: str, **environment: str) -> subprocess.Popen[str]:
    """`tunetrail retrain` in a process of its own, where no Prefect API answers."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from flows.cli import main; main()", "retrain", check],
        cwd=project.root,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
