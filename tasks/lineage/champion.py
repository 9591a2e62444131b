"""The model that a new one is compared with, by the identity of its version.

An identity is the sha256 of a provenance, and a provenance has the sha256 of every file of its model.
So wherever the files come from, what is used is what was pinned, or nothing: a stage that compares
with it stays a function of its inputs (law 5), as with a hub's model at a commit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tasks.lineage import hashes, whole
from tasks.lineage.console import log
from tasks.lineage.stage import STATE, StageError

if TYPE_CHECKING:
    from tasks.lineage.evidence import Evidence

PLACE = STATE / "champions"
"""Where champions lie, each in a folder that its identity names."""

PROVENANCE = "provenance.json"
MERGED, ONNX = "merged", "onnx"
_OUTPUTS = {MERGED: "models/merged", ONNX: "models/onnx"}
"""The outs of `merge` that become these folders."""
_BEGINNING = b'{\n  "base": {'
"""Of a provenance, whose keys are sorted."""
_LARGEST = 10_000_000
"""Bytes of a provenance, at most."""


@dataclass(frozen=True)
class Champion:
    """A model that lies here, every file of it checked."""

    folder: Path

    @property
    def merged(self) -> Path:
        """The model in Hugging Face format."""
        return self.folder / MERGED

    @property
    def onnx(self) -> Path | None:
        """The model as it is served; None where it was not exported."""
        onnx = self.folder / ONNX
        return onnx if (onnx / "genai_config.json").is_file() else None


def bring(identity: str, place: Path = PLACE) -> Champion:
    """The model of a version: from `place` if it lies there whole, else from DVC's cache, else from
    MLflow; it stays in `place`.

    Raises:
        StageError: when it is nowhere to be had undamaged.
    """
    folder = place / identity
    if _whole(folder, identity):
        return Champion(folder)
    troubles = []
    for source in (_from_cache, _from_mlflow):
        whole.recover(folder)  # from a process that was killed
        partial = whole.partial(folder)
        partial.mkdir(parents=True)
        try:
            source(identity, partial)
            if not _whole(partial, identity):
                raise _NotThere("its files there are not those that were recorded")
            whole.put(partial, folder)
        except _NotThere as error:
            troubles.append(str(error))
        else:
            log.info("the champion %s is brought to %s", identity[:12], folder)
            return Champion(folder)
        finally:
            whole.remove(partial)
    raise StageError(
        f"evaluate.champion is {identity}, whose model cannot be had: {'; '.join(troubles)}. "
        "Give the identity of a version that MLflow has (its tag `identity`), or null"
    )


class _NotThere(Exception):
    """A source does not have the model. The message says what it has not."""


def _whole(folder: Path, identity: str) -> bool:
    """Whether a folder holds a provenance of this identity, and the files that it names, no others."""
    provenance = folder / PROVENANCE
    if not provenance.is_file() or hashes.file_hash(provenance, "sha256") != identity:
        return False
    told = json.loads(provenance.read_text(encoding="utf-8")).get("files", {})
    return all(hashes.manifest(folder / name) == told.get(name) for name in (MERGED, ONNX))


def _within(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _NotThere(f"{name!r} leads out of the folder of the model")
    return name


def _from_cache(identity: str, folder: Path) -> None:
    """Copy the model from DVC's cache, where its provenance lies too, as an out of `register`."""
    cache = _cache()
    provenance = cache and _provenance_in(cache, identity)
    if cache is None or provenance is None:
        raise _NotThere("DVC's cache has no provenance of that sha256")
    shutil.copyfile(provenance, folder / PROVENANCE)
    document = json.loads(provenance.read_text(encoding="utf-8"))
    try:
        for name, out in _OUTPUTS.items():
            for file, md5 in _listed(cache, _md5(document, out)).items():
                target = folder / name / _within(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(_object(cache, md5), target)
    except FileNotFoundError:
        raise _NotThere("DVC's cache has only a part of it") from None


def _cache() -> Path | None:
    """The cache of the project in the current folder."""
    asked = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False
    )
    folder = Path(asked.stdout.strip()) / "files" / "md5"
    return folder if asked.returncode == 0 and folder.is_dir() else None


def _provenance_in(cache: Path, identity: str) -> Path | None:
    """The object that has a sha256, among those that look like a provenance: DVC knows md5 alone."""
    for path in cache.glob("??/*"):
        if path.suffix == ".dir" or path.stat().st_size > _LARGEST:
            continue
        with path.open("rb") as file:
            beginning = file.read(len(_BEGINNING))
        if beginning == _BEGINNING and hashes.file_hash(path, "sha256") == identity:
            return path
    return None


def _md5(document: Mapping[str, Any], out: str) -> str:
    """DVC's md5 of an output that a provenance tells of."""
    for stage in document.get("stages", ()):
        if md5 := stage.get("outputs", {}).get(out, {}).get("md5"):
            return str(md5)
    raise _NotThere(f"its provenance does not tell of {out}")


def _listed(cache: Path, md5: str) -> dict[str, str]:
    """The md5 of each file of a folder."""
    listing = json.loads(_object(cache, md5).read_text(encoding="utf-8"))
    return {entry["relpath"]: entry["md5"] for entry in listing}


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _from_mlflow(identity: str, folder: Path) -> None:
    """Copy the model from what MLflow keeps with a version of this identity."""
    from mlflow import MlflowException

    from tasks.lineage import evidence, store

    try:
        client = store.connect()
    except store.Unreachable as error:
        raise _NotThere(str(error)) from None
    versions = client.search_model_versions(f"tags.identity = '{identity}'")
    if not versions:
        raise _NotThere("MLflow has no version with that identity")
    trouble = ""
    for version in versions:  # the first of them that is whole
        whole.remove(folder)
        folder.mkdir()
        try:
            with tempfile.TemporaryDirectory(prefix="tunetrail-") as scratch:
                _copy(evidence.collect(client, version, Path(scratch)), folder)
        except (_NotThere, MlflowException, OSError) as error:
            trouble = str(error)
            continue
        if _whole(folder, identity):
            return
    if trouble:
        raise _NotThere(trouble)


def _copy(found: Evidence, folder: Path) -> None:
    """The model of a version as it lies in MLflow, with its provenance."""
    from tasks.lineage import evidence

    served = f"{evidence.MODEL}/{evidence.SERVED.format(ONNX)}/"
    for name, path in found.files.items():
        kept = f"{ONNX}/{name.removeprefix(served)}" if name.startswith(served) else name
        if kept == PROVENANCE or kept.startswith((f"{MERGED}/", f"{ONNX}/")):
            target = folder / _within(kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def hand_over(identity: str, root: Path) -> None:
    """Bring a champion into another work tree, whose stages reach neither this cache nor MLflow.

    Raises:
        StageError: as `bring`.
    """
    there = root / PLACE / identity
    shutil.copytree(bring(identity).folder, there, dirs_exist_ok=True)
