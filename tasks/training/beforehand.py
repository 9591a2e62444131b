"""What must hold before a model is loaded, and would else come to light after minutes, or never."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.lineage import hashes
from tasks.lineage.stage import FAULT, StageError
from tasks.model import shapes, source
from tasks.model.source import MANIFEST


class Corrupt(StageError):
    """A model is not what was written."""

    exit_code = FAULT


def check_model(folder: Path) -> None:
    """Hold a model folder against its manifest, since safetensors loads flipped bits without a word, and
    look for weights that are no numbers.

    Raises:
        Corrupt: with the first file that is not what was written.
        StageError: with the first tensor that is not finite.
    """
    remedy = (
        f"delete {folder} and bring it again with `dvc checkout {folder}`, or with `dvc repro -f` of "
        "the stage that writes it"
    )
    try:
        stated = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Corrupt(f"{folder / MANIFEST} cannot be read ({error}); {remedy}") from None
    found = hashes.manifest(folder)
    found.pop(MANIFEST, None)
    for name in sorted(stated.keys() | found.keys()):
        if stated.get(name) == found.get(name):
            continue
        if name not in found:
            fault = "is missing"
        elif name not in stated:
            fault = f"is not in {MANIFEST}"
        else:
            fault = f"has sha256 {found[name][:12]}, {MANIFEST} says {stated[name][:12]}"
        raise Corrupt(f"{folder / name} {fault}: it was changed after it was written; {remedy}")
    source.check_finite(folder)


def check_context(model: Path, lengths: Sequence[int], names: Sequence[str], file: Path) -> None:
    """No sequence may be longer than the model was made for; nothing is ever cut.

    Args:
        lengths: tokens of each row.
        names: of each row, in the same order.

    Raises:
        StageError: with the longest row.
    """
    context = shapes.context(model)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if context is not None and lengths[longest] > context:
        too_long = sum(length > context for length in lengths)
        raise StageError(
            f"{file}: row {names[longest]} has {lengths[longest]} tokens, and {too_long} of "
            f"{len(lengths)} rows have more than the {context} that {model} was made for "
            f"(config.json); set format.max_tokens to {context} at most, or take a model with a longer "
            "context"
        )


def check_block(model: Path, block_tokens: int) -> None:
    """The same for packed text.

    Raises:
        StageError: when a block is longer than the context.
    """
    context = shapes.context(model)
    if context is not None and block_tokens > context:
        raise StageError(
            f"cpt.block_tokens: is {block_tokens}, more than the {context} tokens that {model} was made "
            "for (config.json); lower it"
        )


def check_targets(model: Path, wanted: str | list[str], key: str) -> None:
    """Raise StageError when no module has a wanted name, with the names there are.

    Args:
        wanted: names, or all-linear.
        key: where in params.yaml they stand.
    """
    if isinstance(wanted, list) and (unknown := shapes.unknown_targets(wanted, model)):
        raise StageError(f"{key}: {unknown}")
