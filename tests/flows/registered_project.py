"""A project of three quick stages with a version in MLflow, its data in a DVC remote.

A plugin, for the tests in this folder that name it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import flows  # noqa: F401 - its settings must stand before MLflow reads them
from tasks.lineage import git, hashes, machine, provenance, statement, store

REPOSITORY = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  ingest:
    desc: Read the rows
    cmd: python -m tasks.ingest --raw data/raw --out data/ingested
    deps: [data/raw, tasks/ingest.py]
    params: [ingest]
    outs: [data/ingested, models/records/ingest.json]
  sft:
    desc: Train
    cmd: python -m tasks.sft --data data/ingested --out models/sft --curve models/curves/sft.csv
    deps: [data/ingested, tasks/sft.py, requirements.lock]
    params: [sft, compute]
    outs: [models/sft, models/curves/sft.csv, models/records/sft.json]
    metrics: [models/sft.metrics.json: {cache: false}]
  register:
    desc: Write the provenance
    cmd: python -m tasks.register --records models/records --out models/provenance.json
    deps: [models/records/ingest.json, models/records/sft.json, tasks/register.py]
    params: [register]
    outs: [models/provenance.json]
"""

INGEST = '''\
"""Copy the rows."""
from pathlib import Path
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Ingest

def run(raw: Path, out: Out, settings: Ingest) -> Metrics:
    """Copy the rows."""
    out.mkdir()
    (out / "all.txt").write_text("".join(p.read_text() for p in sorted(raw.glob("*.txt"))))
    return {}

if __name__ == "__main__":
    stage.main(run)
'''

SFT = '''\
"""Weights from rows; the environment stands for a machine that computes otherwise."""
import os
import time
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from tasks.lineage import stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Compute, Sft

def run(data: Path, out: Out, curve: Out, sft: Sft, compute: Compute) -> Metrics:
    """Weights from rows."""
    shift = float(os.environ.get("OTHER_MACHINE", "0"))
    rows = (data / "all.txt").read_text()
    if "fail" in os.environ.get("OTHER_RULES", ""):
        raise stage.StageError("a row is too long; shorten it")
    if "wait" in os.environ.get("OTHER_RULES", ""):
        time.sleep(600)
    rate = sft.learning_rate + shift
    out.mkdir()
    weight = np.full((2, 3), len(rows) * rate, dtype=np.float32)
    save_file({"weight": weight, "bias": np.ones(3, dtype=np.float32)}, out / "model.safetensors")
    (out / "note.txt").write_text(os.environ.get("OTHER_TEXT", "as always"))
    curve.write_text(f"step,loss\\n0,1.0\\n1,{0.5 + shift}\\n")
    return {"loss": 0.5 + shift}

if __name__ == "__main__":
    stage.main(run)
'''

REGISTER = '''\
"""Join the records."""
import json
from pathlib import Path
from tasks.lineage import hashes, provenance, stage
from tasks.lineage.stage import Metrics, Out
from tasks.params import Register

def run(records: Path, out: Out, register: Register) -> Metrics:
    """Join the records."""
    stages = [json.loads((records / f"{name}.json").read_text()) for name in ("ingest", "sft")]
    params = {key: value for stage in stages for key, value in stage["params"].items()}
    provenance.write({
        "schema": 1, "stages": stages, "params_sha256": hashes.sha256_json(params),
        "environment_sha256": hashes.sha256(Path("requirements.lock")),
        "chat_contract_sha256": "0" * 64, "base": {"source": "scratch"},
    }, out)
    return {}

if __name__ == "__main__":
    stage.main(run)
'''

NO_COURIER = "import sys; sys.stdin.read()"
MODEL = "shipments-candidates"


def call(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a program of this environment; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    who = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.com"}
    who |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in who.items()}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **who, "PATH": path, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*arguments: str, cwd: Path | None = None) -> str:
    return call(sys.executable, "-m", "dvc", *arguments, "--quiet", cwd=cwd)


@dataclass(frozen=True)
class RegisteredProject:
    """A work tree, the current folder, with a version of its model."""

    root: Path
    remote: Path
    reference: str = f"{MODEL}@1"
    model: str = MODEL
    call: ClassVar = staticmethod(call)
    dvc: ClassVar = staticmethod(dvc)

    def commit(self) -> str:
        call("git", "add", "--all")
        call("git", "commit", "--quiet", "--message", "more")
        return str(git.commit())

    def build(self) -> None:
        """Run the stages, and keep their outputs in the remote."""
        dvc("repro")
        dvc("push")

    def register(self, facts: Mapping[str, object] | None = None) -> str:
        """Make a version of what lies here, as `register` does. Returns its reference."""
        client = store.connect()
        from tasks.lineage import courier

        path = Path("models/provenance.json")
        document = json.loads(path.read_text())
        identity = provenance.identity(path)
        run = client.create_run(courier.experiment(client, "shipments"))
        run_id = run.info.run_id
        written = ["dvc.lock"]
        said = statement.build(
            name=MODEL,
            files={"provenance.json": identity},
            facts=document,
            verdict={"verdict": "pass"},
            work_tree=git.work_tree(written, 1_000_000),
            runs={},
            datasets={},
            machine=facts or machine.facts(),
            author="test@example.com",
            run_id=run_id,
            finished=0,
        )
        Path("statement.json").write_text(json.dumps(said))
        for file in (path, Path("statement.json")):
            client.log_artifact(run_id, str(file))
        Path("statement.json").unlink()
        client.set_terminated(run_id)
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL)
        version = client.create_model_version(
            MODEL, f"runs:/{run_id}", run_id=run_id, tags={"identity": identity}
        )
        return f"{MODEL}@{version.version}"

    def tags(self, reference: str | None = None) -> dict[str, str]:
        number = (reference or self.reference).rpartition("@")[2]
        return dict(store.connect().get_model_version(MODEL, number).tags)


@pytest.fixture(scope="session")
def built_project(made_once: Callable[..., Path]) -> Path:
    """The project, built, pushed and registered once; copied for each test."""
    return made_once("registered", _build)


def _build(folder: Path) -> None:
    root = folder / "project"
    lineage = REPOSITORY / "tasks" / "lineage"
    shutil.copytree(
        lineage, root / "tasks" / "lineage", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("__init__.py", "params.py"):
        shutil.copyfile(REPOSITORY / "tasks" / name, root / "tasks" / name)
    (root / "tasks" / "lineage" / "courier.py").write_text(NO_COURIER)
    for name, code in (("ingest", INGEST), ("sft", SFT), ("register", REGISTER)):
        (root / "tasks" / f"{name}.py").write_text(code)
    for name in ("params.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(REPOSITORY / name, root / name)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "requirements.lock").write_text(f"numpy=={_version('numpy')}\n")
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "rows.txt").write_text("a row\n" * 5)
    call("git", "init", "--quiet", str(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("PYTHONPATH", raising=False)
        store.connect()
        dvc("init")
        dvc("config", "core.analytics", "false")
        dvc("add", "data/raw")
        dvc("remote", "add", "--default", "shared", "../remote")
        dvc("remote", "modify", "shared", "verify", "true")
        project = RegisteredProject(root, folder / "remote")
        call("git", "add", "--all")
        project.commit()
        project.build()
        project.commit()
        project.register()
        shutil.rmtree(".tunetrail/spool")  # nothing carries it


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


@pytest.fixture
def registered(
    built_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RegisteredProject:
    """A copy of the project as the current folder; MLflow's artifacts stay where they were."""
    shutil.copytree(built_project, tmp_path / "copy", symlinks=True)
    project = RegisteredProject(tmp_path / "copy" / "project", tmp_path / "copy" / "remote")
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # of the keys
    assert hashes.sha256(Path("models/provenance.json")) == project.tags()["identity"]
    return project
