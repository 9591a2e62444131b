"""What a registered version needs stays, with the real DVC and MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from flows import dvc_storage
from flows.cli import app
from tasks.lineage import hashes, store
from tasks.lineage.stage import FAULT, MISUSE

if TYPE_CHECKING:
    from registered_project import RegisteredProject

pytest_plugins = ("registered_project",)


def gc(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["gc", *arguments])


def objects() -> set[str]:
    folder = dvc_storage.objects_of(Path(".dvc/cache"))
    return {path.parent.name + path.name for path in folder.glob("*/*")}


def needed(provenance: Path) -> set[str]:
    """md5 of every cached output that a provenance names, and of what these folders hold."""
    found = set()
    for record in json.loads(provenance.read_text())["stages"]:
        for path, output in record["outputs"].items():
            if not path.endswith("metrics.json"):
                found |= {output["md5"], *hashes.manifest(Path(path), "md5").values()}
    return found


def waste() -> Path:
    """Something that nothing refers to any more."""
    path = Path("unneeded.bin")
    path.write_bytes(b"\0" * 2**20)
    return path


def test_what_nothing_needs_goes_and_versions_stay(registered: RegisteredProject) -> None:
    first = needed(Path("models/provenance.json"))
    Path("data/raw/rows.txt").write_text("other rows\n")
    registered.dvc("repro")
    kept_by_version = needed(Path("models/provenance.json"))
    registered.register()
    Path("data/raw/rows.txt").write_text("rows of nobody\n")
    registered.dvc("repro")
    dropped = needed(Path("models/provenance.json")) - first - kept_by_version
    registered.call("git", "checkout", "--quiet", "--force", ".")
    registered.dvc("checkout")
    client = store.connect()
    experiment = client.get_experiment_by_name("shipments").experiment_id
    gone = client.create_run(experiment, run_name="failed").info.run_id
    client.delete_run(gone)
    client.delete_run(client.get_model_version(registered.model, "2").run_id)
    before = objects()
    assert dropped
    assert first | kept_by_version | dropped <= before

    shown = gc()
    assert shown.exit_code == 0
    assert "Nothing was removed. Next: `tunetrail gc --yes`" in shown.stdout
    assert f"deleted run {gone} (failed)" in shown.stdout
    assert "1 deleted runs" in shown.stdout
    assert objects() == before

    shown = gc("--yes")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert dropped.isdisjoint(objects())
    assert first | kept_by_version <= objects()
    with pytest.raises(Exception, match="not found"):
        client.get_run(gone)
    client.restore_run(client.get_model_version(registered.model, "2").run_id)
    assert "0 objects of the cache, 0.0 MiB; 0 deleted runs" in gc().stdout


def test_other_branches_and_tags_keep_theirs(registered: RegisteredProject) -> None:
    registered.call("git", "checkout", "--quiet", "-b", "other")
    Path("data/raw/rows.txt").write_text("rows of a branch\n")
    registered.dvc("repro", "ingest")
    registered.commit()
    registered.call("git", "tag", "milestone")
    registered.call("git", "checkout", "--quiet", "master")
    registered.call("git", "branch", "--quiet", "--delete", "--force", "other")
    registered.dvc("checkout")
    before = objects()
    assert gc("--yes").exit_code == 0
    assert objects() == before


def test_a_folder_whose_list_is_lost(registered: RegisteredProject) -> None:
    """Its files cannot be told from what may go."""
    md5 = hashes.dvc_md5(Path("models/sft"))
    dvc_storage.object_path(Path(".dvc/cache"), md5).unlink()
    assert gc("--yes").exit_code == 0  # the remote has the list
    dvc_storage.object_path(registered.remote, md5).unlink()
    dvc_storage.object_path(Path(".dvc/cache"), md5).unlink(missing_ok=True)
    refused = gc("--yes")
    assert refused.exit_code == FAULT
    assert refused.stderr.startswith(f"{registered.reference} needs models/sft ({md5}), and the ")


def test_what_cannot_be_told_is_refused(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        refused = gc("--yes")
        assert refused.exit_code == FAULT
        assert "it alone knows what registered versions need" in refused.stderr
    client = store.connect()
    experiment = client.get_experiment_by_name("shipments").experiment_id
    client.delete_experiment(experiment)
    refused = gc("--yes")
    assert refused.exit_code == FAULT
    assert f"`mlflow experiments restore --experiment-id {experiment}` first" in refused.stderr
    client.restore_experiment(experiment)
    run = client.create_run(experiment)
    client.create_model_version(
        registered.model, "runs:/x", run_id=run.info.run_id, tags={"identity": "0"}
    )
    refused = gc("--yes")
    assert refused.stderr.startswith(f"the provenance of {registered.model}@2 cannot be read")


def test_a_cache_that_others_use(registered: RegisteredProject, tmp_path: Path) -> None:
    shutil.move(".dvc/cache", tmp_path / "shared")
    registered.dvc("cache", "dir", "--local", str(tmp_path / "shared"))
    refused = gc("--yes")
    assert refused.exit_code == MISUSE
    assert "lies outside of this project" in refused.stderr
