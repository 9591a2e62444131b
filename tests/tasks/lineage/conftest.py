"""A work tree in a temporary folder with a stage that can be steered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEMO = '''
"""A stage that does as it is told."""
from __future__ import annotations
import os, sys, time
from pathlib import Path
from tasks.lineage import stage, tracking
from tasks.lineage.console import log
from tasks.lineage.stage import GateError, Metrics, Out, StageError
from tasks.params import Compute, Sft

def run(data: Path, out: Out, sft: Sft, compute: Compute) -> Metrics:
    """Copy a text."""
    tracking.log_input("text", data, "training")
    out.mkdir()
    (out / "text").write_text((data / "text").read_text())
    for step in range(3):
        tracking.log_metrics({"loss": 1 / (step + 1)}, step)
    tracking.log_artifact(out, "copy")
    log.info("working")
    order = os.environ.get("ORDER", "")
    if order == "misuse":
        raise StageError("data/text is 7, which must be 8; write 8")
    if order == "gate":
        raise GateError("3 of 5 rows are bad, at most 1 may be; mend them")
    if order == "crash":
        raise RuntimeError("boom")
    if order == "full":
        raise OSError(28, "No space left on device", str(out / "more"))
    if order == "full of tensors":
        raise RuntimeError("Error while serializing: I/O error: No space left (os error 28)")
    if order == "choose":
        from tasks.lineage import chosen

        chosen.note({"dtype": "float32"}, {"device": "cpu"})
    if order == "keep":
        from tasks.lineage import unfinished

        kept = unfinished.folder()
        assert kept is not None and not kept.exists()
        kept.mkdir(parents=True)
        (kept / "step").write_text("7")
        raise StageError("interrupted")
    if order == "sleep":
        time.sleep(60)
    return {"rows": 1, "deep": {"share": 0.5}, "threads": int(os.environ["OMP_NUM_THREADS"])}

if __name__ == "__main__":
    stage.main(run)
'''

WIRING = """
stages:
  demo:
    cmd: python -m tasks.demo --data data --out models/demo
    deps: [data, tasks/demo.py]
    params: [sft, compute]
    outs: [models/demo, models/records/demo.json]
    metrics: [models/demo.metrics.json: {cache: false}]
"""

NO_COURIER = "import sys; sys.stdin.read()"


@dataclass(frozen=True)
class Project:
    """A work tree with one stage, `demo`."""

    root: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
        return {**kept, "PYTHONPATH": "", **more}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tasks.demo", "--data", "data", "--out", "models/demo"]

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(),
            cwd=self.root,
            env=self.environment(**environment),
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(**environment)
        _, stderr = process.communicate(timeout=180)
        return subprocess.CompletedProcess(self.command(), process.returncode, "", stderr)

    def spools(self) -> list[Path]:
        return sorted((self.root / ".tunetrail" / "spool").glob("*.jsonl"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A work tree whose stages are not told to MLflow."""
    for part in ("lineage", "__init__.py", "params.py"):
        source, target = ROOT / "tasks" / part, tmp_path / "tasks" / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "tasks" / "demo.py").write_text(DEMO)
    (tmp_path / "tasks" / "lineage" / "courier.py").write_text(NO_COURIER)
    (tmp_path / "dvc.yaml").write_text(WIRING)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text").write_text("new")
    return Project(tmp_path)


@pytest.fixture
def tracked_project(project: Project, sqlite: Path) -> Project:
    """A work tree with a courier and an MLflow store."""
    courier = ROOT / "tasks" / "lineage" / "courier.py"
    shutil.copyfile(courier, project.root / "tasks" / "lineage" / "courier.py")
    shutil.copyfile(sqlite, project.root / "mlflow.db")
    return project
