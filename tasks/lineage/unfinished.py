"""What an interrupted stage keeps for its next run, such as checkpoints of training.

It lies in the state of the work tree, not among DVC's outputs, under a key of all that decides the
result: the stage's inputs (code and lock file included) and its parameters.  So nothing is ever taken
up that belongs to other inputs.  What a stage chooses by the machine that it runs on joins the key.
The runner removes it when the stage is done.
Outside a stage (in a test or a notebook) there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.lineage import hashes

KEY_DIGITS = 24

_folder: Path | None = None


def place(state: Path, stage: str, inputs: Mapping[str, str], params: Mapping[str, Any]) -> Path:
    """The folder of a stage with these inputs (hashes by path) and parameters."""
    return state / stage / hashes.sha256_json([dict(inputs), dict(params)])[:KEY_DIGITS]


def use(folder: Path | None) -> None:
    """Keep things there from now on; None keeps nothing."""
    global _folder
    _folder = folder


def narrow(values: Mapping[str, Any]) -> None:
    """From now on keep things apart by these values too, which the stage found out itself."""
    if _folder is not None:
        use(_folder / hashes.sha256_json([_folder.name, dict(values)])[:KEY_DIGITS])


def folder() -> Path | None:
    """Where the running stage keeps things; it need not exist yet."""
    return _folder
