"""What a model folder says of itself without being loaded: its config and the heads of its weights.

A safetensors file begins with the length of a JSON document that has the type, shape and place of each
tensor, so that a model of any size is known in milliseconds.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lineage.stage import StageError

_LONGEST_HEAD = 100_000_000
"""Bytes; the limit of the format."""


@dataclass(frozen=True)
class Tensor:
    """Of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str
    """As the file says it: F32, BF16, ..."""
    bytes: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, by name.

    Raises:
        StageError: for a file that is none, or that is cut off.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StageError(f"{folder} holds no safetensors; run `dvc repro base`")
    return {name: tensor for file in files for name, tensor in _head(file)}


def _head(file: Path) -> Iterator[tuple[str, Tensor]]:
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > min(size - 8, _LONGEST_HEAD):
                raise ValueError("its head is cut off")
            head = json.loads(content.read(length))
        head.pop("__metadata__", None)
        found = {
            name: Tensor(
                tuple(entry["shape"]),
                entry["dtype"],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in head.items()
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{file} is no sound safetensors file ({error}); {_REMEDY}") from None
    expected = 8 + length + sum(tensor.bytes for tensor in found.values())
    if expected != size:
        raise StageError(f"{file} has {size:,} bytes, its head says {expected:,}; {_REMEDY}")
    yield from found.items()


_REMEDY = "bring it again: `dvc checkout models`, or `dvc repro -f` of the stage that wrote it"


def config(folder: Path) -> dict[str, Any]:
    """The part of config.json that speaks of text; a model that also sees has it one level down."""
    whole: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = whole.get("text_config", whole)
    return text


def context(folder: Path) -> int | None:
    """The longest sequence that the model was made for, in tokens; None where it does not say."""
    found = config(folder)
    length = next((found[key] for key in _CONTEXT if key in found), None)
    return length if isinstance(length, int) else None


_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def matrices(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that an adapter can be put on, by the name of their module: those of linear layers
    and embeddings."""
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in weights.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }


def target_names(folder: Path) -> list[str]:
    """What may stand in sft.target_modules for this model."""
    return sorted({name.rpartition(".")[2] for name in matrices(tensors(folder))})


def unknown_targets(wanted: list[str], folder: Path) -> str | None:
    """Why an adapter cannot be put on these modules: none has such a name."""
    names = target_names(folder)
    unknown = [name for name in wanted if name not in names]
    if not unknown:
        return None
    return f"{', '.join(unknown)} not in this model; it has {', '.join(names)}"
