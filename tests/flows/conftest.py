"""A project of three trivial stages, for what walks a DAG and does not care what its stages do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import flows  # noqa: F401 - its settings must stand before Prefect reads them

REPOSITORY = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  evaluate:                     # not in the order of its needs
    desc: Score what there is
    cmd: python stage.py evaluate models/evaluate.metrics.json models/verdict.json
    deps: [stage.py, data/ingested]
    params: [evaluate]
    outs: [models/verdict.json: {cache: false}]
    metrics: [models/evaluate.metrics.json: {cache: false}]
  base:
    desc: Bring the base model
    cmd: python stage.py base models/base --raw data/raw
    deps: [stage.py, data/raw]
    outs: [models/base]
    meta: {retries: 1}
  ingest:
    desc: Read every source
    cmd: python stage.py ingest data/ingested --raw data/raw
    deps: [stage.py, data/raw, models/base]
    outs: [data/ingested]
"""

# Fails when told to by a file fail-STAGE that holds "EXIT_CODE TIMES MESSAGE".
STAGE = """\
import json
import sys
import time
from pathlib import Path

name, *outs = (word for word in sys.argv[1:] if word not in ("--raw", "data/raw"))
print("running", name, "with", sys.executable, flush=True)
with Path("calls.txt").open("a") as calls:
    calls.write(name + "\\n")
told = Path(f"fail-{name}")
if told.exists():
    code, times, message = told.read_text().split(" ", 2)
    if int(times):
        told.write_text(f"{code} {int(times) - 1} {message}")
        if message:
            Path(".tunetrail/failures").mkdir(parents=True, exist_ok=True)
            Path(f".tunetrail/failures/{name}.txt").write_text(message)
        sys.exit(int(code))
for out in map(Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    ready = Path(out.name)
    out.write_text(ready.read_text() if ready.exists() else f"{name}\\n")
"""

METRICS = """\
{"task": "structured", "primary": "exact_match", "final": "dpo", "candidates":
 {"base": {"test": {"exact_match": {"value": 0.1, "low": 0.05, "high": 0.18}}},
  "dpo": {"test": {"exact_match": {"value": 0.91, "low": 0.88, "high": 0.95}},
          "hard_test": {"exact_match": {"value": 0.8, "low": null, "high": null}}}},
 "comparisons": {"simpler":
   {"left": "dpo", "right": "base", "metric": "exact_match", "split": "test", "rows": 90,
    "left_value": 0.91, "right_value": 0.1,
    "difference": {"value": 0.81, "low": 0.75, "high": 0.88},
    "left_only": 73, "right_only": 0, "p_value": 0.0, "resolvable": 0.1, "says": "better"},
  "champion": null},
 "forgetting": null}
"""

VERDICT = """\
{"candidate": "dpo", "verdict": "pass",
 "contaminated_share": {"value": null, "low": null, "high": null},
 "gates": [{"gate": "metric", "metric": "exact_match", "split": "test",
 "value": 0.91, "limit": 0.8, "passed": true, "why": "0.91 is at least 0.8"}]}
"""


@pytest.fixture(scope="session")
def pristine(made_once: Callable[..., Path]) -> Path:
    """The project before anything has run; made once, copied for each test."""
    return made_once("project", _make_project)


def _make_project(root: Path) -> None:
    from dvc.repo import Repo

    for name in ("params.yaml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "profiles", root / "profiles")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "stage.py").write_text(STAGE)
    (root / "evaluate.metrics.json").write_text(METRICS)
    (root / "verdict.json").write_text(VERDICT)
    (root / "tasks").mkdir()
    for stage in ("base", "ingest", "evaluate"):
        (root / "tasks" / f"{stage}.py").touch()
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    for source in YAML(typ="safe").load(root / "params.yaml")["ingest"]["sources"]:
        (raw / source["file"]).write_text("{}\n")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    Repo.init(str(root)).close()


@pytest.fixture
def project(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the project, as the current folder."""
    root = tmp_path / "project"
    shutil.copytree(pristine, root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def calls(project: Path) -> Callable[[], list[str]]:
    """Tells the stages whose command has run, in order."""
    path = project / "calls.txt"
    return lambda: path.read_text().split() if path.exists() else []


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A Prefect API with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    from flows import pipeline

    with prefect_test_harness(server_startup_timeout=120):
        pipeline._hand_over()  # else the events go where those of earlier tests went, to another server
        yield
