"""The model to compare with is the one that was pinned, wherever it comes from, or none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import champion, evidence, hashes, provenance, store
from tasks.lineage.stage import StageError

pytest_plugins = ("work_trees",)

FILES = {
    "merged": {"model.safetensors": "weights", "sub/config.json": "{}"},
    "onnx": {"genai_config.json": "{}", "model.onnx": "graph"},
}


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The identity of a version whose model lies in this work tree's models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for folder, files in FILES.items():
        for name, text in files.items():
            path = Path("models") / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    outputs = {
        f"models/{folder}": {
            "md5": hashes.dvc_md5(Path("models") / folder),
            "sha256": hashes.sha256(Path("models") / folder),
        }
        for folder in FILES
    }
    document = {
        "base": {"source": "scratch"},
        "files": {folder: hashes.manifest(Path("models") / folder) for folder in FILES},
        "stages": [{"stage": "merge", "outputs": outputs}],
    }
    provenance.write(document, Path("models/provenance.json"))
    return provenance.identity(Path("models/provenance.json"))


@pytest.fixture
def cache(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC cache that holds the version."""
    folder = tmp_path / "cache" / "files" / "md5"
    monkeypatch.setattr(champion, "_cache", lambda: folder)

    def keep(path: Path, md5: str) -> None:
        target = folder / md5[:2] / md5[2:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    keep(Path("models/provenance.json"), hashes.file_hash(Path("models/provenance.json"), "md5"))
    for name in FILES:
        model = Path("models") / name
        listing = []
        for file in hashes.files_below(model):
            md5 = hashes.file_hash(file, "md5")
            keep(file, md5)
            listing.append({"md5": md5, "relpath": file.relative_to(model).as_posix()})
        listed = tmp_path / "listing"
        listed.write_text(json.dumps(listing, sort_keys=True))
        assert hashes.file_hash(listed, "md5") + ".dir" == hashes.dvc_md5(model)
        keep(listed, hashes.dvc_md5(model))
    return folder


def content(found: champion.Champion) -> dict[str, dict[str, str]]:
    assert found.onnx is not None
    return {
        name: {
            file.relative_to(folder).as_posix(): file.read_text()
            for file in hashes.files_below(folder)
        }
        for name, folder in (("merged", found.merged), ("onnx", found.onnx))
    }


def test_from_the_cache_then_from_its_place(
    version: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = champion.bring(version)
    assert found.folder == Path(".tunetrail/champions") / version
    assert content(found) == FILES
    monkeypatch.setattr(champion, "_cache", lambda: pytest.fail("it lies here whole"))
    assert champion.bring(version) == found


@pytest.mark.parametrize("name", ["merged/model.safetensors", "onnx/model.onnx", "provenance.json"])
def test_a_damaged_file_is_brought_anew(version: str, cache: Path, name: str) -> None:
    found = champion.bring(version)
    (found.folder / name).write_text("other")
    assert content(champion.bring(version)) == FILES
    (found.folder / name).unlink()
    assert content(champion.bring(version)) == FILES


def test_a_file_too_many_is_not_used(version: str, cache: Path) -> None:
    found = champion.bring(version)
    (found.merged / "model-2.safetensors").write_text("slipped in")
    assert content(champion.bring(version)) == FILES


def test_what_is_damaged_everywhere_is_refused(version: str, cache: Path) -> None:
    md5 = hashes.file_hash(Path("models/merged/model.safetensors"), "md5")
    (cache / md5[:2] / md5[2:]).write_text("flipped")
    with pytest.raises(StageError) as caught:
        champion.bring(version)
    told = str(caught.value)
    assert told.startswith(f"evaluate.champion is {version}, whose model cannot be had: its files")
    assert "there are not those that were recorded; MLflow at http://127.0.0.1:9 does not" in told
    assert told.endswith(
        "Give the identity of a version that MLflow has (its tag `identity`), or null"
    )
    assert not any(Path(".tunetrail/champions").iterdir())


def test_a_part_in_the_cache_is_not_enough(version: str, cache: Path) -> None:
    md5 = hashes.file_hash(Path("models/merged/model.safetensors"), "md5")
    (cache / md5[:2] / md5[2:]).unlink()
    with pytest.raises(StageError, match="DVC's cache has only a part of it"):
        champion.bring(version)


def test_an_identity_that_nobody_has(cache: Path) -> None:
    with pytest.raises(StageError, match="DVC's cache has no provenance of that sha256; MLflow at"):
        champion.bring("0" * 64)


@pytest.mark.parametrize("missing", ["files", "stages"])
def test_a_provenance_of_an_older_form_is_no_champion(
    version: str, cache: Path, missing: str
) -> None:
    provenance_file = Path("models/provenance.json")
    document = json.loads(provenance_file.read_text())
    del document[missing]
    provenance.write(document, provenance_file)
    md5 = hashes.file_hash(provenance_file, "md5")
    (cache / md5[:2]).mkdir(exist_ok=True)
    shutil.copyfile(provenance_file, cache / md5[:2] / md5[2:])
    with pytest.raises(StageError, match="whose model cannot be had: its "):
        champion.bring(provenance.identity(provenance_file))


def test_a_path_that_leads_out_is_refused(version: str, cache: Path) -> None:
    md5 = hashes.dvc_md5(Path("models/merged"))
    listing = [{"md5": "0" * 32, "relpath": "../../../escaped"}]
    (cache / md5[:2] / md5[2:]).write_text(json.dumps(listing))
    with pytest.raises(
        StageError, match=r"'../../../escaped' leads out of the folder of the model"
    ):
        champion.bring(version)


def test_a_model_that_was_not_exported(version: str, cache: Path) -> None:
    found = champion.bring(version)
    (found.onnx or Path()).joinpath("genai_config.json").unlink()
    assert found.onnx is None


def test_it_is_handed_over_to_another_tree(version: str, cache: Path, tmp_path: Path) -> None:
    champion.hand_over(version, tmp_path / "tree")
    there = tmp_path / "tree" / ".tunetrail/champions"
    assert content(champion.bring(version, there)) == FILES


def test_from_mlflow(light: Any) -> None:
    """A registered version, where no cache has it."""
    light.register()
    identity = provenance.identity(Path("models/provenance.json"))
    found = champion.bring(identity)
    assert found.onnx is not None
    for folder, made in ((found.merged, "models/merged"), (found.onnx, "models/onnx")):
        assert hashes.manifest(folder) == hashes.manifest(Path(made))


def test_a_damaged_version_in_mlflow_does_not_hide_a_whole_one(
    light: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    light.register()
    identity = provenance.identity(Path("models/provenance.json"))
    collect, asked = evidence.collect, []

    class Client:
        def search_model_versions(self, query: str) -> list[str]:
            return ["unreadable", "without weights", "whole"]

    client = store.connect()
    (version,) = client.search_model_versions(f"tags.identity = '{identity}'")
    monkeypatch.setattr(store, "connect", Client)

    def collected(_: Client, which: str, folder: Path) -> evidence.Evidence:
        asked.append(which)
        if which == "unreadable":
            raise FileNotFoundError(which)
        found = collect(client, version, folder)
        kept = {name: path for name, path in found.files.items() if "safetensors" not in name}
        return found if which == "whole" else dataclasses.replace(found, files=kept)

    monkeypatch.setattr(evidence, "collect", collected)
    assert champion.bring(identity).onnx is not None
    assert asked == ["unreadable", "without weights", "whole"]
