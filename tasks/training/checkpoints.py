"""Checkpoints: what a training run needs to go on as if nothing had happened.

They lie where the runner says (tasks.lineage.unfinished): not among DVC's outputs, and under a key of
all that decides the result, so that a run never goes on from the checkpoint of another one.  Each is
written beside its place, with a manifest of sha256, and renamed; the last KEPT stay.  safetensors and
JSON alone, no pickle.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import hashes, whole
from tasks.lineage.console import log
from tasks.lineage.stage import FAULT, StageError

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
"""The last, and the one before it, should the last turn out to be damaged."""

MANIFEST = "manifest.json"
KEY = "key"
"""Of the run that a checkpoint belongs to: the name of its store's folder."""
_STEP, _DAMAGED = "step-", "damaged-"


class DiskFull(StageError):
    """There is no room for a checkpoint; the last one is intact."""

    exit_code = FAULT


class Store:
    """The checkpoints of one training run.

    Args:
        folder: belongs to this run alone; made when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Path | None:
        """The last checkpoint that is what was written, for this run; any other is set aside.

        What a kill left half-written is removed.
        """
        for left in self.folder.glob(f".{_STEP}*"):
            whole.remove(left)
        for folder in self._steps():
            fault = _fault(folder, self.folder.name)
            if fault is None:
                return folder
            aside = folder.with_name(f"{_DAMAGED}{folder.name}")
            whole.remove(aside)
            folder.rename(aside)
            log.warning(
                "the checkpoint %s is set aside (%s); going on from the one before it, if there is one",
                folder,
                fault,
            )
        return None

    def write(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], **documents: Any
    ) -> None:
        """Write a checkpoint and remove those before the last KEPT.

        Args:
            step: of the optimiser, counted from 1.
            tensors: by file name without suffix.
            documents: JSON values, likewise.

        Raises:
            DiskFull: the checkpoints before this one are intact.
        """
        from safetensors.torch import save_file

        place = self.folder / f"{_STEP}{step:09d}"
        beside = whole.partial(place)
        whole.remove(beside)
        needed = sum(value.nbytes for group in tensors.values() for value in group.values())
        try:
            beside.mkdir(parents=True)
            if shutil.disk_usage(beside).free < needed:
                raise OSError(errno.ENOSPC, "no room")
            for name, group in tensors.items():
                kept = {key: value.detach().cpu().contiguous() for key, value in group.items()}
                save_file(kept, beside / f"{name}.safetensors")
            for name, value in {**documents, KEY: self.folder.name}.items():
                (beside / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
            manifest = json.dumps(hashes.manifest(beside), indent=2)
            (beside / MANIFEST).write_text(manifest, encoding="utf-8")
            whole.put(beside, place)
        except Exception as error:
            if not whole.is_disk_full(error):
                raise
            whole.remove(beside)
            raise DiskFull(self._no_room(step, needed)) from None
        self._prune()

    def _steps(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob(f"{_STEP}*"), reverse=True)

    def _prune(self) -> None:
        for folder in self._steps()[KEPT:]:
            whole.remove(folder)

    def _no_room(self, step: int, needed: int) -> str:
        last = next(iter(self._steps()), None)
        free = shutil.disk_usage(self.folder).free
        intact = (
            f"that of step {int(last.name.removeprefix(_STEP))} is intact and training goes on from it"
            if last
            else "there is none before it"
        )
        return (
            f"no room for the checkpoint of step {step}: it takes {needed:,} bytes, {free:,} are free "
            f"in {self.folder}; {intact}: free some space and run again"
        )


def _fault(folder: Path, key: str) -> str | None:
    """Why a checkpoint cannot be trusted."""
    try:
        stated = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} cannot be read"
    try:
        return _difference(folder, key, stated)
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"


def _difference(folder: Path, key: str, stated: Mapping[str, str]) -> str | None:
    """From what its manifest states, and from what its run is."""
    found = dict(_files(folder))
    for name in sorted(set(stated) | set(found)):
        if stated.get(name) != found.get(name):
            missing = name not in found
            return f"{name} is missing" if missing else f"{name} is not what was written"
    if json.loads((folder / f"{KEY}.json").read_text(encoding="utf-8")) != key:
        return "it is of a run with other inputs or params"
    return None


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for name, digest in hashes.manifest(folder).items():
        if name != MANIFEST:
            yield name, digest
