from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port

from tasks import register
from tasks.lineage import evidence, hashes, provenance, registry, store, verify
from tasks.lineage.stage import GateError, StageError
from tasks.lineage.statement import Statement
from tasks.lineage.tracking import Spool

pytest_plugins = ("work_trees",)


def versions() -> list:
    client = store.connect()
    return list(client.search_model_versions("name = 'shipments-candidates'"))


def test_the_pipeline_makes_one_version(pipeline) -> None:
    out = pipeline.register()
    first = out.read_bytes()
    assert pipeline.register().read_bytes() == first
    (version,) = versions()
    assert version.tags["identity"] == provenance.identity(out)
    assert not register.PENDING.exists()


def test_with_mlflow_down_the_provenance_is_written_all_the_same(
    pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, closed_port: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", closed_port)
        patch.setattr(register.log, "propagate", True)
        out = pipeline.register()
    assert caplog.messages == [
        f"MLflow at {closed_port} does not answer ([Errno 111] Connection refused); "
        "the version waits for `tunetrail sync`"
    ]
    assert register.PENDING.exists()
    before = out.read_bytes()

    version, problems = register.sync()
    assert problems == []
    assert version == registry.Version("shipments-candidates", 1, created=True)
    assert out.read_bytes() == before
    assert not register.PENDING.exists()


def test_sync_registers_anew_in_a_fresh_mlflow(pipeline, sqlite: Path) -> None:
    """As in a fresh clone, where DVC restored every stage from its cache."""
    pipeline.register()
    Path("mlflow.db").rename("old.db")
    shutil.copyfile(sqlite, "new.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path('new.db').resolve()}")
        version, _ = register.sync()
        assert version is not None and version.created
        assert register.sync()[0] == registry.Version(version.model, version.number, created=False)


def test_sync_before_the_first_provenance_delivers_runs(work_tree: Path, root: Path) -> None:
    shutil.copyfile(root / "dvc.yaml", "dvc.yaml")
    spool = Spool(Path(".tunetrail/spool"), "sft", "shipments")
    spool.start({}, {})
    spool.end("FINISHED")
    assert register.sync() == (None, [])
    assert not spool.path.exists()


def test_stale_records_fail_the_stage(pipeline) -> None:
    Path("models/records/format.json").write_text(
        Path("models/records/format.json").read_text().replace('"data/raw": "', '"data/raw": "0')
    )
    with pytest.raises(provenance.StageError, match="is stale; run `dvc repro`"):
        pipeline.register()


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def committed(light):
    """A pipeline in a git repository; as in ours, models and MLflow's store are ignored."""
    Path(".gitignore").write_text(
        "/models/\n/data/\n/mlruns/\n/mlflow.db*\n/.tunetrail/\n/config/\n"
    )
    Path("code.py").write_text("old\n")
    git("init", "--initial-branch", "main")
    git("add", ".")
    git("commit", "-m", "first")
    return light


def said() -> Statement:
    (version,) = versions()
    client = store.connect()
    return Statement.read(Path(client.download_artifacts(version.run_id, evidence.STATEMENT)))


def test_what_is_not_committed_is_kept_with_the_version(committed) -> None:
    Path("code.py").write_text("new\n")
    Path("dvc.lock").write_text("written by DVC")
    committed.register()
    assert said().commit == git("rev-parse", "HEAD")
    assert said().changed_files == ["code.py"]
    changes = said().changes
    (version,) = versions()
    assert (version.tags["git.commit"], version.tags["git.dirty"]) == (said().commit, "true")
    assert verify.verify("shipments-candidates", "1").holds
    git("checkout", "code.py")
    subprocess.run(["git", "apply"], input=changes, check=True)
    assert Path("code.py").read_text() == "new\n"


def test_uncommitted_changes_can_be_refused(committed) -> None:
    committed.require_clean = True
    Path("code.py").write_text("new\n")
    Path("added.py").write_text("new\n")
    with pytest.raises(GateError) as raised:
        committed.register()
    assert str(raised.value) == (
        "not committed: added.py, code.py; commit it, or set register.require_clean to false to keep "
        "the changes with the version"
    )
    assert versions() == []
    git("add", ".")
    git("commit", "-m", "second")
    committed.register()
    assert said().changes == b""
    assert said().commit == git("rev-parse", "HEAD")


def test_too_many_changes_are_refused(committed) -> None:
    Path("large.txt").write_text("abc\n" * 50_000)
    with pytest.raises(StageError) as raised:
        committed.register()
    assert "is too large to keep with the version (" in str(raised.value)
    assert str(raised.value).endswith(
        "in large.txt; register.max_changes_bytes is 100,000); commit it, or name it in .gitignore"
    )
    assert versions() == []


@pytest.mark.slow
def test_a_version_is_made_on_a_server(
    pipeline, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server checks what a database takes as it is."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    spool = Spool(Path(".tunetrail/spool"), "merge", "shipments")
    spool.start({"merge": {"onnx": True}}, {})
    spool.write("tag", key="out:models/onnx", value=hashes.dvc_md5(Path("models/onnx")))
    spool.artifact(Path("models/report"), "report")
    spool.end("FINISHED")
    pipeline.register()
    pipeline.register()
    (version,) = versions()
    assert version.tags["run:merge"]
    report = verify.verify("shipments-candidates", "challenger")
    assert report.failed == []
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model("models:/shipments-candidates@challenger")
    assert len(model.predict(pd.DataFrame({"message": ["late"]}))) == 1
    assert not Path("mlruns").exists()


@pytest.fixture
def server(tmp_path: Path, sqlite: Path) -> Iterator[str]:
    """An MLflow server with a database of its own."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copyfile(sqlite, folder / "mlflow.db")
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            host,
            "--port",
            port,
            "--workers",
            "1",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/health", timeout=2)
            break
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)
    yield f"http://{address}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()
