"""What lies in DVC's cache and remotes, by hash."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flows import dvc_storage
from tasks.lineage import hashes

if TYPE_CHECKING:
    from registered_project import RegisteredProject

pytest_plugins = ("registered_project",)


def test_the_project_knows_its_storage(registered: RegisteredProject) -> None:
    where = dvc_storage.storage()
    (remote,) = where.remotes
    assert where.cache == registered.root / ".dvc" / "cache"
    assert (remote.name, remote.folder, remote.verified) == ("shared", registered.remote, True)


def test_a_damaged_object_is_sought_elsewhere(
    registered: RegisteredProject, tmp_path: Path
) -> None:
    """A flipped bit in the cache is found, and the remote has the file whole."""
    where = dvc_storage.storage()
    weights, rows = Path("models/sft"), Path("data/ingested/all.txt")
    md5 = hashes.file_hash(weights / "model.safetensors", "md5")
    damaged = dvc_storage.object_path(where.cache, md5)
    damaged.chmod(0o644)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    wanted = {
        tmp_path / "a" / "sft": hashes.dvc_md5(weights),
        tmp_path / "rows": hashes.dvc_md5(rows),
        tmp_path / "never": "0" * 32,
    }
    assert dvc_storage.fetch(wanted, where) == [tmp_path / "never"]
    assert hashes.manifest(tmp_path / "a" / "sft") == hashes.manifest(weights)
    assert (tmp_path / "rows").read_text() == rows.read_text()


def test_the_files_of_a_folder(registered: RegisteredProject) -> None:
    where = dvc_storage.storage()
    md5 = hashes.dvc_md5(Path("models/sft"))
    held = sorted(hashes.manifest(Path("models/sft"), "md5").values())
    assert sorted(dvc_storage.listing(md5, where) or []) == held
    shutil.rmtree(where.cache)
    assert sorted(dvc_storage.listing(md5, where) or []) == held
    shutil.rmtree(registered.remote)
    assert dvc_storage.listing(md5, where) is None
