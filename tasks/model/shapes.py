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
from tasks.params import EMBEDDINGS

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
    """What may stand in target_modules for this model."""
    found = {name.rpartition(".")[2] for name in matrices(tensors(folder))} - set(HEADS)
    return sorted(found - set(EMBEDDINGS) if tied(folder) else found)


HEADS = ("lm_head", "embed_out")
"""What models call their output layer; TRL's trainer refuses an adapter there."""


def tied(folder: Path) -> bool:
    """Whether the output layer is the table of embeddings, so that an adapter on one of them cannot be
    folded: a file then holds one of the two."""
    return not any(name.rpartition(".")[2] in HEADS for name in matrices(tensors(folder)))


def unknown_targets(wanted: list[str], folder: Path) -> str | None:
    """Why an adapter cannot be put on these modules."""
    names = target_names(folder)
    unknown = [name for name in wanted if name not in names]
    if not unknown:
        return None
    shared = [name for name in unknown if name in EMBEDDINGS]
    if shared and tied(folder):
        return (
            f"{shared[0]} shares its weights with the output layer in this model, so that an adapter on "
            f"it cannot be folded in; it has {', '.join(names)}"
        )
    return f"{', '.join(unknown)} not in this model; it has {', '.join(names)}"
