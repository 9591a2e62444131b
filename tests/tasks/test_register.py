from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks import register
from tasks.lineage import provenance, registry, store
from tasks.lineage.tracking import Spool


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
