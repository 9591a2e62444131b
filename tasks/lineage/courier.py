"""Carries spool files to MLflow, in a process of its own beside the stage.

    python -m tasks.lineage.courier SPOOL_FOLDER

The stage runner starts it with the stage and closes its input when the stage is done.  It delivers
whatever lies in the folder, also what earlier stages left.  How far each file is delivered stands
in a note beside it, and what is sent twice MLflow keeps once, so that a courier may be killed at
any moment.  With MLflow out of reach it says so in one line, and the files wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import posixpath
import re
import select
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from tasks.lineage import console, process, store, whole
from tasks.lineage.console import log
from tasks.lineage.tracking import HOST_TAG, PROCESS_TAG, artifacts_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

Event = dict[str, Any]
T = TypeVar("T")

ROUND_SECONDS = 3.0
LONGEST_ROUND_SECONDS = 60.0
"""Between two attempts to reach a server that is down."""

LOCK_SECONDS = 15.0
"""How long the last round waits for another courier's round to end."""

SPOOL_TAG = "tunetrail.spool"
_BATCH_BYTES = 1_000_000


def main() -> None:
    """Deliver rounds until the stage closes our input, then a last one."""
    console.setup("mlflow")
    folder = Path(sys.argv[1])
    courier = Courier(folder)
    warned = False
    pause = ROUND_SECONDS
    stage_done = False
    while True:
        problems = courier.round(LOCK_SECONDS if stage_done else 0)
        if problems and not warned:
            log.warning("%s", problems[0])
            warned = True
        if stage_done:
            return
        pause = min(pause * 2, LONGEST_ROUND_SECONDS) if problems else ROUND_SECONDS
        stage_done = _closed(sys.stdin.fileno(), pause)


def _closed(descriptor: int, seconds: float) -> bool:
    """Wait until the other end is closed, at most so long."""
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return bool(ready) and os.read(descriptor, 1024) == b""


class Courier:
    """Delivers the spool files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._client: MlflowClient | None = None

    def round(self, wait_seconds: float) -> list[str]:
        """Deliver what lies in the folder now, unless another courier does.  A round that waits for
        the other, a stage's last and that of `tunetrail sync`, also closes the runs of processes that
        are gone and left no spool.

        Returns:
            What could not be delivered, a line each with place and remedy.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=wait_seconds):
                problems = self._deliver_all()
                if wait_seconds and not problems:
                    problems = self._close_abandoned()
                return problems
        except Timeout:
            return []  # its round, or the next one, sends ours too

    def _deliver_all(self) -> list[str]:
        problems: list[str] = []
        _remove_orphans(self.folder)
        for path in sorted(self.folder.glob("*.jsonl")):
            spool = _SpoolFile(path)
            if not spool.has_news():
                continue
            try:
                if self._client is None:
                    self._client = store.connect()
                spool.deliver(self._client)
            except store.Unreachable as error:
                return [*problems, f"{error}; {_waits(self.folder)}"]
            except Exception as error:  # of any kind: another file must not wait for this one
                self._client = None  # the next file asks anew whether MLflow is there
                problems.append(f"MLflow refuses {path.name}: {store.brief(error)}; {_waits(path)}")
        return problems

    def _close_abandoned(self) -> list[str]:
        try:
            self._client = self._client or store.connect()
            for run in abandoned(self._client):
                if not (self.folder / f"{run.data.tags[SPOOL_TAG]}.jsonl").exists():
                    self._client.set_terminated(run.info.run_id, status="KILLED")
        except store.Unreachable as error:
            return [str(error)]
        except Exception as error:
            self._client = None
            return [
                f"MLflow cannot close the runs of processes that are gone: {store.brief(error)}"
            ]
        return []


def abandoned(client: MlflowClient) -> list[Any]:
    """The runs that MLflow calls RUNNING, of processes of this machine that are gone."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = client.search_runs(
        experiments,
        f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{platform.node()}'",
    )
    return [run for run in running if not process.is_running(run.data.tags[PROCESS_TAG])]


def _waits(path: Path) -> str:
    return f"the run waits in {path}; the next stage or `tunetrail sync` sends it"


def _remove_orphans(folder: Path) -> None:
    """What a courier that was killed while it wrote or cleaned up left."""
    for part in folder.glob(".*.partial"):
        part.unlink()
    for files in folder.glob("*.files"):
        if not files.with_suffix(".jsonl").exists():
            shutil.rmtree(files)


def is_ended(spool: Path) -> bool:
    """Whether the stage that wrote a spool file is done with it, or gone."""
    with spool.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@dataclass
class _Note:
    """How far a spool file is delivered."""

    run_id: str | None
    offset: int


class _SpoolFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_suffix(".sent")

    def has_news(self) -> bool:
        return self._writer_is_gone() or self.path.stat().st_size > self._read_note().offset

    def deliver(self, client: MlflowClient) -> None:
        """Send what is new, and close the run when the stage has ended or its process is gone."""
        gone = self._writer_is_gone()  # asked before reading: then what is read is all there is
        start = self._start()
        if start is None:  # killed at its first word, or still writing it
            if gone:
                self.path.unlink()
            return
        note = self._read_note()
        if note.run_id is None or not _has_run(client, note.run_id):
            note = _Note(_run_for(client, self.path.stem, start), 0)
        assert note.run_id is not None
        while events := self._read(note):
            _send(client, note.run_id, events, self.path.parent)
            self._write_note(note)
        if gone:
            last = self._last()
            self._finish(client, note.run_id, last.get("status", "KILLED"), last["time"])

    def _writer_is_gone(self) -> bool:
        return is_ended(self.path)

    def _start(self) -> Event | None:
        with self.path.open("rb") as file:
            line = file.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def _read(self, note: _Note) -> list[Event]:
        """The next whole lines; moves the note behind them."""
        with self.path.open("rb") as file:
            file.seek(note.offset)
            lines = [line for line in file.readlines(_BATCH_BYTES) if line.endswith(b"\n")]
        note.offset += sum(map(len, lines))
        return [json.loads(line) for line in lines]

    def _last(self) -> Event:
        """The last whole line: the end, or what a killed stage said last."""
        event: Event = json.loads(self.path.read_bytes().rpartition(b"\n")[0].splitlines()[-1])
        return event

    def _finish(self, client: MlflowClient, run_id: str, status: str, time_ms: int) -> None:
        client.set_terminated(run_id, status=status, end_time=time_ms)
        # In this order, a courier that is killed in between sends again, and loses nothing.
        self._note.unlink(missing_ok=True)
        self.path.unlink()
        shutil.rmtree(artifacts_of(self.path), ignore_errors=True)

    def _read_note(self) -> _Note:
        with contextlib.suppress(FileNotFoundError):
            return _Note(**json.loads(self._note.read_text(encoding="utf-8")))
        return _Note(None, 0)

    def _write_note(self, note: _Note) -> None:
        whole.write_text(self._note, json.dumps(asdict(note)))


def _has_run(client: MlflowClient, run_id: str) -> bool:
    """False when the store is another one than before, or the run was deleted."""
    from mlflow import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _run_for(client: MlflowClient, spool: str, start: Event) -> str:
    """The run of a spool file: made once, found again after a delivery that was cut off."""
    import getpass

    from mlflow.entities import Param

    where = experiment(client, start["experiment"])
    found = client.search_runs([where], f"tags.`{SPOOL_TAG}` = '{spool}'", max_results=1)
    if found:
        run = found[0]
    else:
        run = client.create_run(
            where,
            start_time=start["time"],
            run_name=start["stage"],
            tags={
                SPOOL_TAG: spool,
                "mlflow.user": getpass.getuser(),
                **{_name(key): value for key, value in start["tags"].items()},
            },
        )
    params = {_name(key): value for key, value in start["params"].items()}
    for some in _chunks([Param(key, value) for key, value in params.items()], 100):
        client.log_batch(run.info.run_id, params=some)
    run_id: str = run.info.run_id
    return run_id


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment with this name; it is made if need be."""
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):  # another process was faster
            client.create_experiment(name)
        found = client.get_experiment_by_name(name)
    identifier: str = found.experiment_id
    return identifier


def _send(client: MlflowClient, run_id: str, events: list[Event], folder: Path) -> None:
    from mlflow.entities import Metric, RunTag

    of = {kind: [event for event in events if event["type"] == kind] for kind in _KINDS}
    metrics = [
        Metric(_name(event["key"]), event["value"], event["time"], event["step"])
        for event in of["metric"]
    ]
    for some in _chunks(metrics, 1000):
        client.log_batch(run_id, metrics=some)
    tags = {_name(event["key"]): event["value"] for event in of["tag"]}
    for several in _chunks([RunTag(key, value) for key, value in tags.items()], 100):
        client.log_batch(run_id, tags=several)
    if of["input"]:
        client.log_inputs(run_id, datasets=[_dataset(event) for event in of["input"]])
    for event in of["artifact"]:
        path = folder / event["path"]
        if path.is_dir():
            client.log_artifacts(run_id, str(path), event["folder"] or None)
        else:
            client.log_artifact(run_id, str(path), event["folder"] or None)


_KINDS = ("metric", "tag", "input", "artifact")
_DIGEST_CHARS = 36
"""As many as MLflow takes; the whole sha256 stands in a tag of the input."""


def _dataset(event: Event) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": event["path"]})
    return DatasetInput(
        Dataset(event["name"], event["digest"][:_DIGEST_CHARS], "local", source),
        [
            InputTag("mlflow.data.context", event["context"]),
            InputTag("tunetrail.sha256", event["digest"]),
        ],
    )


def _name(key: str) -> str:
    """A key as MLflow accepts it; keys can come from a team's own data."""
    plain = re.sub(r"[^\w. /:-]", "_", key)
    return posixpath.normpath(plain).lstrip("./")[:250] or "_"


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


if __name__ == "__main__":
    main()
    os._exit(0)  # all is delivered or kept; tearing MLflow's modules down would take a second
