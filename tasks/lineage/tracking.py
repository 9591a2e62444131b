"""What a stage says about itself while it runs: metrics, files, inputs, tags.

Events go to a spool file, one JSON object a line; `tasks.lineage.courier` carries them to MLflow in
batches from a process of its own.  So a slow or absent MLflow server costs a warning, never a
training run, and whatever was not delivered is delivered by the next stage.
Outside a stage (in a test or a notebook) the functions here do nothing.
"""

from __future__ import annotations

import fcntl
import json
import platform
import re
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from tasks.lineage import git, process
from tasks.lineage.hashes import sha256

Status = Literal["FINISHED", "FAILED", "KILLED"]

HOST_TAG = "tunetrail.host"
PROCESS_TAG = "tunetrail.process"
"""Which process a run is of, so that one that is gone can be told from one that is slow."""


class Spool:
    """An open spool file: one MLflow run to be.

    The events, by `type`:
        start     stage, experiment, params {name: value}, tags {name: text}
        metric    key, value, step
        tag       key, value
        input     name, path, digest (ours: MLflow's own ignores text inside messages), context
        artifact  path, of a copy beside the spool; folder (inside the run)
        end       status
    Each has `time`, in milliseconds since 1970.  The writer holds a lock on the file, which the
    system frees when it dies: a file without an end that nobody holds is that of a killed stage.
    """

    def __init__(self, folder: Path, stage: str, experiment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns()}-{stage}-{uuid.uuid4().hex[:8]}.jsonl"
        unlocked = self.path.with_suffix(".new")
        self._file: IO[str] = unlocked.open("a", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unlocked.rename(self.path)
        self.stage = stage
        self.experiment = experiment
        self._artifacts = 0

    def write(self, type: str, **fields: Any) -> None:
        event = {"type": type, "time": time.time_ns() // 1_000_000, **fields}
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run.  The courier may deliver it much later, so what holds now is said now."""
        source = {
            "mlflow.source.name": f"tasks.{self.stage}",
            "mlflow.source.type": "LOCAL",
            HOST_TAG: platform.node(),
            PROCESS_TAG: process.name(),
        }
        if commit := git.commit():
            source |= {"mlflow.source.git.commit": commit, "git.dirty": str(git.dirty()).lower()}
        self.write(
            "start",
            stage=self.stage,
            experiment=self.experiment,
            params=dict(_flatten(params)),
            tags={**tags, **source},
        )

    def artifact(self, path: Path, folder: str) -> None:
        """Keep a copy for the courier: outputs are renamed, and the next run writes them anew."""
        self._artifacts += 1
        name = re.sub(r"^\.(.+)\.partial$", r"\1", path.name)  # what it is called once it is done
        copy = artifacts_of(self.path) / str(self._artifacts) / name
        copy.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        self.write("artifact", path=str(copy.relative_to(self.path.parent)), folder=folder)

    def end(self, status: Status) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = {
            "system/peak_rss_mb": used.ru_maxrss / _RSS_UNITS_IN_MB,
            "system/cpu_seconds": used.ru_utime + used.ru_stime,
        }
        for key, value in spent.items():
            self.write("metric", key=key, value=value, step=0)
        self.write("end", status=status)
        self._file.close()


_RSS_UNITS_IN_MB = 1024**2 if sys.platform == "darwin" else 1024


def artifacts_of(spool: Path) -> Path:
    """Where a spool file's artifacts wait."""
    return spool.with_suffix(".files")


_spool: Spool | None = None


def use(spool: Spool | None) -> None:
    """Send what follows to this spool; the stage runner calls it."""
    global _spool
    _spool = spool


def log_metrics(values: Mapping[str, float], step: int = 0) -> None:
    """Record numbers at a step."""
    if _spool:
        for key, value in values.items():
            _spool.write("metric", key=key, value=float(value), step=step)


def log_tag(key: str, value: str) -> None:
    """Record a text that the run can be found by."""
    if _spool:
        _spool.write("tag", key=key, value=value)


def log_artifact(path: Path, folder: str = "") -> None:
    """Attach a file, or a folder with all below it, to the run."""
    if _spool:
        _spool.artifact(path, folder)


def log_input(name: str, path: Path, context: str) -> None:
    """Record that the stage reads this data, identified by its sha256."""
    if _spool:
        _spool.write("input", name=name, path=str(path), digest=sha256(path), context=context)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, str(value)))
    return flat
