from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.lineage import courier, process, store, tracking
from tasks.lineage.courier import Courier
from tasks.lineage.tracking import Spool

pytest_plugins = ("work_trees",)

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture
def folder(work_tree: Path) -> Path:
    return work_tree / "spool"


def written(folder: Path, stage: str = "sft", end: bool = True) -> Spool:
    """A spool with one event of each type."""
    spool = Spool(folder, stage, "shipments")
    tracking.use(spool)
    spool.start({"sft": {"lora_r": 16, "odd $key": 1}}, {"in:data/raw": "5" * 32})
    tracking.log_metrics({"loss": 0.5, "odd $metric": 1}, step=0)
    tracking.log_metrics({"loss": 0.25}, step=1)
    data = folder.parent / "rows.jsonl"
    data.write_text("{}\n")
    tracking.log_input("train", data, "training")
    tracking.log_artifact(data, "data")
    tracking.log_tag("out:models/sft", "6" * 32)
    tracking.use(None)
    if end:
        spool.end("FINISHED")
    return spool


def killed(spool: Spool) -> None:
    """What the system does to a process that dies: its files are closed."""
    spool._file.close()


def runs() -> list:
    client = store.connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["start_time ASC"]))


def test_a_run_has_all_that_its_spool_says(folder: Path) -> None:
    spool = written(folder)
    assert Courier(folder).round(0) == []
    (run,) = runs()
    assert (run.info.run_name, run.info.status) == ("sft", "FINISHED")
    assert run.data.params == {"sft.lora_r": "16", "sft.odd _key": "1"}
    assert run.data.metrics["loss"] == 0.25
    assert run.data.metrics["odd _metric"] == 1
    assert run.data.metrics["system/peak_rss_mb"] > 0
    assert run.data.tags["in:data/raw"] == "5" * 32
    assert run.data.tags["out:models/sft"] == "6" * 32
    assert run.data.tags[courier.SPOOL_TAG] == spool.path.stem
    client = store.connect()
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (1, 0.25)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "data")] == [
        "data/rows.jsonl"
    ]
    (given,) = run.inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in given.tags}
    assert tags["mlflow.data.context"] == "training"
    assert tags["tunetrail.sha256"].startswith(given.dataset.digest)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_times_are_those_of_the_stage(folder: Path) -> None:
    before = time.time() * 1000
    written(folder)
    time.sleep(0.05)
    after = time.time() * 1000
    time.sleep(0.05)
    Courier(folder).round(0)
    (run,) = runs()
    assert before - 1 <= run.info.start_time <= run.info.end_time <= after


def test_a_running_stage_is_delivered_in_parts(folder: Path) -> None:
    spool = written(folder, end=False)
    carrier = Courier(folder)
    carrier.round(0)
    (run,) = runs()
    assert run.info.status == "RUNNING"
    assert run.data.metrics["loss"] == 0.25
    tracking.use(spool)
    tracking.log_metrics({"loss": 0.125}, step=2)
    tracking.use(None)
    spool.end("FAILED")
    carrier.round(0)
    (run,) = runs()
    assert run.info.status == "FAILED"
    history = store.connect().get_metric_history(run.info.run_id, "loss")
    assert [metric.value for metric in history] == [0.5, 0.25, 0.125]


def test_nothing_is_sent_without_news(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = written(folder, end=False)
    Courier(folder).round(0)
    monkeypatch.setattr(store, "connect", lambda: pytest.fail("asked MLflow without need"))
    assert Courier(folder).round(0) == []
    killed(spool)


@pytest.mark.parametrize("step", ["_run_for", "_send", "_write_note", "_finish"])
def test_a_courier_that_dies_anywhere_doubles_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It dies behind each of its steps in turn; the next one takes over."""
    written(folder)
    place = courier if hasattr(courier, step) else courier._SpoolFile
    original = getattr(place, step)

    def dies(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, step, dies)
        with pytest.raises(KeyboardInterrupt):
            Courier(folder).round(0)
    assert Courier(folder).round(0) == []
    (run,) = runs()
    assert run.info.status == "FINISHED"
    client = store.connect()
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
    assert len(run.inputs.dataset_inputs) == 1
    assert len(client.list_artifacts(run.info.run_id, "data")) == 1
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("step", ["_run_for", "_send", "_finish"])
def test_a_server_that_goes_away_anywhere_costs_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """At the start of a stage, in the middle, or at its end; when it is back, all is sent once."""
    written(folder)
    place = courier if hasattr(courier, step) else courier._SpoolFile

    def refuses(*arguments):
        raise ConnectionError("Connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(place, step, refuses)
        (problem,) = Courier(folder).round(courier.LOCK_SECONDS)
    assert "Connection refused; the run waits in " in problem
    assert Courier(folder).round(0) == []
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert len(store.connect().get_metric_history(run.info.run_id, "loss")) == 2


def test_a_run_whose_spool_was_lost_is_closed(folder: Path) -> None:
    """As when .tunetrail was deleted after a kill; a run of another machine may well go on."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    client = store.connect()
    where = courier.experiment(client, "shipments")

    def begun(host: str, process: str) -> str:
        tags = {"tunetrail.host": host, "tunetrail.process": process, courier.SPOOL_TAG: "lost"}
        return client.create_run(where, tags=tags).info.run_id

    gone = begun(platform.node(), f"{ended.pid}@1")
    here = begun(platform.node(), process.name())
    elsewhere = begun("another machine", f"{ended.pid}@1")
    assert Courier(folder).round(0) == []
    assert client.get_run(gone).info.status == "RUNNING"
    assert Courier(folder).round(courier.LOCK_SECONDS) == []
    assert client.get_run(gone).info.status == "KILLED"
    assert client.get_run(here).info.status == "RUNNING"
    assert client.get_run(elsewhere).info.status == "RUNNING"


def test_the_run_of_a_killed_stage_is_closed(folder: Path) -> None:
    spool = written(folder, end=False)
    with spool.path.open("a") as file:
        file.write('{"type": "metric", "ti')  # the line at which it died
    killed(spool)
    Courier(folder).round(0)
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert run.info.end_time - run.info.start_time < 60_000
    assert not spool.path.exists()


def test_a_stage_that_died_before_its_first_word_leaves_no_run(folder: Path) -> None:
    spool = Spool(folder, "sft", "shipments")
    assert Courier(folder).round(0) == []
    assert spool.path.exists()
    killed(spool)
    assert Courier(folder).round(0) == []
    assert not spool.path.exists()
    assert runs() == []


def test_while_mlflow_is_down_everything_waits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("cpt", "sft"):
        written(folder, stage)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", CLOSED_PORT)
        assert Courier(folder).round(0) == [
            "MLflow at http://127.0.0.1:9 does not answer ([Errno 111] Connection refused); "
            f"the run waits in {folder}; the next stage or `tunetrail sync` sends it"
        ]
    assert len(list(folder.glob("*.jsonl"))) == 2
    assert Courier(folder).round(0) == []
    assert [run.info.run_name for run in runs()] == ["cpt", "sft"]


def test_what_mlflow_refuses_does_not_hold_up_the_rest(folder: Path) -> None:
    poisoned = written(folder, "cpt")
    poisoned.path.write_text(poisoned.path.read_text().replace('"step": 1', '"step": "x"'))
    written(folder, "sft")
    (problem,) = Courier(folder).round(0)
    assert problem.startswith(f"MLflow refuses {poisoned.path.name}: ")
    assert f"the run waits in {poisoned.path}" in problem
    assert [run.info.status for run in runs() if run.info.run_name == "sft"] == ["FINISHED"]


def test_a_run_that_is_gone_is_made_anew(folder: Path, sqlite: Path) -> None:
    """As when mlflow.db was deleted, or another server was named, in the middle of a stage."""
    spool = written(folder, end=False)
    Courier(folder).round(0)
    store.connect().delete_run(runs()[0].info.run_id)
    spool.end("FINISHED")
    assert Courier(folder).round(0) == []
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.25


def test_thousands_of_points_are_delivered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "_BATCH_BYTES", 10_000)
    spool = Spool(folder, "sft", "shipments")
    spool.start({"s": {f"p{number}": number for number in range(150)}}, {})
    tracking.use(spool)
    for step in range(2500):
        tracking.log_metrics({"loss": step}, step)
    tracking.use(None)
    spool.end("FINISHED")
    assert Courier(folder).round(0) == []
    (run,) = runs()
    assert len(run.data.params) == 150
    assert len(store.connect().get_metric_history(run.info.run_id, "loss")) == 2500


def test_couriers_take_turns(folder: Path) -> None:
    """Two stages end at once: each courier waits for the other, and every run is there once."""
    for number in range(6):
        written(folder, f"stage{number}")
    couriers = [
        subprocess.Popen(
            [sys.executable, "-m", "tasks.lineage.courier", str(folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180) for process in couriers]
    assert said == [(None, b""), (None, b"")]
    assert sorted(run.info.run_name for run in runs()) == [f"stage{number}" for number in range(6)]


def test_names_are_made_acceptable() -> None:
    assert courier._name("a$b") == "a_b"
    assert courier._name("/a//b/../c") == "a/c"
    assert courier._name("out:models/sft") == "out:models/sft"
    assert courier._name("..") == "_"


def test_a_stage_is_not_harmed_by_a_server_that_is_down(tracked_project) -> None:
    project = tracked_project
    done = project.run(MLFLOW_TRACKING_URI=CLOSED_PORT)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("mlflow")] == ["demo     working"]
    assert [line for line in lines if line.startswith("mlflow")] == [
        "mlflow   MLflow at http://127.0.0.1:9 does not answer ([Errno 111] Connection refused); "
        "the run waits in .tunetrail/spool; the next stage or `tunetrail sync` sends it"
    ]
    assert (project.root / "models/records/demo.json").exists()
    assert len(project.spools()) == 1


def test_the_next_stage_delivers_what_waits(tracked_project, monkeypatch) -> None:
    project = tracked_project
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(Path(courier.__file__), "courier.kept")
    Path("tasks/lineage/courier.py").write_text("import sys; sys.stdin.read()")
    project.run()  # its courier dies at once
    asleep = project.start(ORDER="sleep")
    assert asleep.stderr is not None
    asleep.stderr.readline()
    asleep.kill()
    asleep.communicate()
    shutil.copyfile("courier.kept", "tasks/lineage/courier.py")
    assert project.run().stderr == "demo     working\n"
    assert [run.info.status for run in runs()] == ["FINISHED", "KILLED", "FINISHED"]
    assert project.spools() == []
    record = json.loads(Path("models/records/demo.json").read_text())
    for run in runs()[::2]:
        assert run.data.tags["out:models/demo"] == record["outputs"]["models/demo"]["md5"]
        assert run.data.tags["in:data"] == record["inputs"]["data"]
        assert run.data.params["sft.lora_r"] == str(record["params"]["sft"]["lora_r"])
        assert run.data.metrics["deep/share"] == 0.5
        assert len(run.inputs.dataset_inputs) == 1
