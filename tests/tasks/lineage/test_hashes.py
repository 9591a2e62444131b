from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.lineage import hashes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    from dvc.repo import Repo

    shutil.copyfile(ROOT / ".dvcignore", tmp_path / ".dvcignore")
    with Repo.init(no_scm=True) as repo:
        yield repo


def recorded(path: str) -> str:
    return YAML(typ="safe").load(Path(f"{path}.dvc"))["outs"][0]["md5"]


def test_md5_of_a_file_is_the_one_that_dvc_records(dvc) -> None:
    Path("file").write_bytes(b"\r\nnot text: \xff\x00")
    dvc.add("file")
    assert hashes.dvc_md5(Path("file")) == recorded("file")


def test_md5_of_a_nested_folder_is_the_one_that_dvc_records(dvc) -> None:
    names = ["a/b/c", "a.txt", "a-b", "A", "ä ö/ü.json", "z", "10", "9", "a/empty"]
    ignored = ["README.md", "a/README.md", "a/__pycache__/x.pyc", "stray.pyc"]
    for name in [*names, *ignored]:
        path = Path("folder") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name.endswith("empty") else name)
    Path("folder/no files below").mkdir()
    dvc.add("folder")
    assert hashes.dvc_md5(Path("folder")) == recorded("folder")
    assert sorted(hashes.manifest(Path("folder"))) == sorted(names)


def test_md5_of_an_empty_folder_is_the_one_that_dvc_records(dvc) -> None:
    Path("folder").mkdir()
    dvc.add("folder")
    assert hashes.dvc_md5(Path("folder")) == recorded("folder")


def test_sha256_of_a_folder_covers_names_and_content(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        for file, text in files.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    first = hashes.sha256(folder("first", a="1", b="2"))
    assert first == hashes.sha256(folder("same", b="2", a="1"))
    assert first != hashes.sha256(folder("renamed", a="1", c="2"))
    assert first != hashes.sha256(folder("changed", a="1", b="3"))


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    with pytest.raises(ValueError, match="link is a symbolic link; replace it"):
        hashes.manifest(tmp_path)


def test_json_is_hashed_by_content_alone() -> None:
    assert hashes.sha256_json({"a": 1, "b": "é"}) == hashes.sha256_json({"b": "é", "a": 1})
