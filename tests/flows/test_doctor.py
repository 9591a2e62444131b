"""Each thing that can be wrong is found, where it is, with what mends it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from flows import doctor, dvc_storage
from flows.cli import app
from flows.doctor import Finding
from tasks.lineage import hashes, promotion, store
from tasks.lineage.stage import StageError
from tasks.lineage.tracking import Spool

if TYPE_CHECKING:
    from registered_project import RegisteredProject

pytest_plugins = ("registered_project",)


def examined(check: Any) -> list[Finding]:
    return list(check())


@pytest.fixture
def gone() -> Iterator[int]:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    yield process.pid


def flip(path: Path) -> None:
    """Change a bit and leave the time as it was, as a disk does."""
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def follow(found: Finding) -> None:
    """Do literally what a finding says."""
    for command in re.findall("`([^`]+)`", found.remedy):
        subprocess.run(shlex.split(command), check=True)


def test_a_healthy_project(registered: RegisteredProject) -> None:
    shown = CliRunner().invoke(app, ["doctor"])
    assert (shown.exit_code, shown.stdout.splitlines()[-1]) == (0, "All is well.")
    assert "reading every object of the cache" in shown.stdout


def test_a_finding_becomes_the_exit_code(registered: RegisteredProject) -> None:
    Path("requirements.lock").write_text("numpy==0.0.1\n")
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert "1 finding:\n  packages: numpy is " in shown.stdout
    assert ", requirements.lock says 0.0.1; `pip install -r requirements.lock`" in shown.stdout


def test_a_flipped_bit_in_the_cache(registered: RegisteredProject) -> None:
    md5 = hashes.file_hash(Path("models/sft/model.safetensors"), "md5")
    path = dvc_storage.object_path(dvc_storage.storage().cache, md5)
    flip(path)
    (found,) = examined(doctor._cache)
    assert found.where == str(path)
    assert found.remedy.startswith(f"`rm -f {path}`, then `dvc fetch`")
    path.unlink()
    registered.dvc("fetch")
    assert examined(doctor._cache) == []


def test_remotes(registered: RegisteredProject, tmp_path: Path) -> None:
    assert examined(doctor._remotes) == []
    registered.dvc("remote", "modify", "shared", "verify", "false")
    registered.dvc("remote", "add", "elsewhere", str(tmp_path / "absent"))
    registered.dvc("remote", "modify", "elsewhere", "verify", "true")
    registered.dvc("remote", "add", "far", "http://127.0.0.1:9/data")
    registered.dvc("remote", "modify", "far", "verify", "true")
    md5 = hashes.file_hash(Path("models/sft/model.safetensors"), "md5")
    flip(dvc_storage.object_path(registered.remote, md5))
    unverified, damaged, absent, far = examined(doctor._remotes)
    assert unverified.remedy == "`dvc remote modify shared verify true`"
    assert damaged.what == "its content is not what its name says"
    follow(damaged)
    assert damaged not in examined(doctor._remotes)
    assert absent.where == "remote elsewhere"
    assert "does not exist" in absent.what
    assert far.what.startswith("out of reach (")
    flip(dvc_storage.object_path(registered.remote, md5))
    dvc_storage.object_path(dvc_storage.storage().cache, md5).unlink()
    assert "`tunetrail doctor` in a clone whose" in examined(doctor._remotes)[1].remedy


def test_what_a_remote_does_not_have(registered: RegisteredProject) -> None:
    md5 = hashes.file_hash(Path("models/sft/model.safetensors"), "md5")
    dvc_storage.object_path(registered.remote, md5).unlink()
    (absent,) = examined(doctor._remotes)
    assert absent.what == f"1 object of this work tree not there: {md5}"
    follow(absent)
    assert examined(doctor._remotes) == []


def test_dvc_files(registered: RegisteredProject, gone: int) -> None:
    assert examined(doctor._dvc_files) == []
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {\n")
    rwlock = Path(".dvc/tmp/rwlock")
    rwlock.write_text('{"write": {"/a": {"pid": 1')
    lock, truncated = examined(doctor._dvc_files)
    assert lock.remedy == "`git checkout dvc.lock`, then `dvc repro`"
    assert truncated.what == "damaged: DVC was ended while it wrote it"
    assert truncated.remedy.endswith("then `rm .dvc/tmp/rwlock`")
    Path("dvc.lock").unlink()
    rwlock.write_text(f'{{"write": {{"/a": {{"pid": {gone}, "cmd": "dvc repro"}}}}, "read": {{}}}}')
    (stale,) = examined(doctor._dvc_files)
    assert stale.what == f"names process {gone}, which is gone"
    rwlock.write_text(f'{{"read": {{"/a": [{{"pid": {os.getpid()}, "cmd": "dvc"}}]}}}}')
    assert examined(doctor._dvc_files) == []


def test_what_a_killed_stage_leaves(registered: RegisteredProject, gone: int) -> None:
    locks = Path(".tunetrail/locks")
    assert not list(locks.glob("*.pid"))  # one that ended well leaves none
    Path("models/.sft.partial").mkdir()
    Path("models/records/.sft.json.old").touch()
    (locks / "sft.pid").write_text(str(os.getpid()))
    assert [*examined(doctor._stage_locks), *examined(doctor._leftovers)] == []
    (locks / "sft.pid").write_text(str(gone))
    (killed,) = examined(doctor._stage_locks)
    assert killed.what == f"stage sft was killed while process {gone} ran it"
    assert [found.where for found in examined(doctor._leftovers)] == [
        "models/.sft.partial",
        "models/records/.sft.json.old",
    ]


def test_disk(registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 2**60)
    found = examined(doctor._disk)
    assert found[0].remedy == "`tunetrail gc` shows what can go"


def test_telemetry(registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch) -> None:
    registered.dvc("config", "core.analytics", "true")
    assert [found.where for found in examined(doctor._telemetry)] == [".dvc/config"]
    registered.dvc("config", "core.analytics", "false")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    (found,) = examined(doctor._telemetry)
    assert str(found) == "DO_NOT_TRACK: is '0', so a tool reports its use; `export DO_NOT_TRACK=1`"


def test_spool(registered: RegisteredProject) -> None:
    spool = Spool(Path(".tunetrail/spool"), "sft", "shipments")
    spool.start({}, {})
    assert examined(doctor._spool) == []
    spool.end("FINISHED")
    (found,) = examined(doctor._spool)
    assert (found.what, found.remedy) == ("1 run waits for MLflow", "`tunetrail sync`")


def test_mlflow(registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch, gone: int) -> None:
    import platform

    client = store.connect()
    experiment = client.get_experiment_by_name("shipments").experiment_id
    tags = {"tunetrail.host": platform.node(), "tunetrail.process": f"{gone}@1"}
    client.create_run(experiment, run_name="sft", tags={"tunetrail.spool": "x", **tags})
    tags["tunetrail.host"] = "another machine"
    client.create_run(experiment, tags=tags)
    (found,) = examined(lambda: doctor._running(client))
    assert found.where.endswith("(sft)")
    assert found.remedy == "`tunetrail sync` closes it"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (found,) = examined(doctor._mlflow)
    assert found.what.startswith("MLflow at http://127.0.0.1:9 does not answer")


def test_aliases_are_asked_of_promotion(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = promotion.Problem("shipments@champion", "no audit entry names it", "promote it")
    monkeypatch.setattr(promotion, "problems", lambda client: [problem])
    assert "shipments@champion: no audit entry names it; promote it" in map(
        str, examined(doctor._mlflow)
    )


def test_what_cannot_be_asked_is_a_finding(
    registered: RegisteredProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowException

    for error in (MlflowException("Permission denied"), StageError("rita.pem is no public key")):
        monkeypatch.setattr(promotion, "problems", Mock(side_effect=error))
        (found,) = examined(doctor._mlflow)
        assert str(error) in found.what
