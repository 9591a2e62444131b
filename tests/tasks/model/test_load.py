"""A model is what its folder holds: nothing of it is made up."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tasks.lineage.stage import StageError
from tasks.model import load

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def changed(
    tiny_model: Path, tmp_path: Path
) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """A copy of the tiny model with other weights."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("how", [load.load_model, load.load_quantised])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda weights: weights.pop(UP), f"{UP} is missing; bring the model again"),
        (
            lambda weights: weights.update(other=weights.pop(UP)),
            f"{UP} is missing; it has 1 tensors that the model has no place for, as other; bring",
        ),
        (
            lambda weights: weights.update({UP: weights[UP][:-1].clone()}),
            f"{UP} is of (127, 64), and config.json asks for (128, 64); bring",
        ),
    ],
    ids=["missing", "renamed", "of another shape"],
)
def test_a_weight_is_never_drawn_at_random(
    how: Callable[[Path], Any], change: Callable[[dict[str, Any]], object], told: str, changed: Any
) -> None:
    folder = changed(change)
    with pytest.raises(StageError) as caught:
        how(folder)
    assert str(caught.value).startswith(f"{folder} is not whole: {told}")


def test_one_too_many_is_told(changed: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = changed(lambda weights: weights.update(other=weights[UP].clone()))
    with caplog.at_level(logging.WARNING):
        load.load_model(folder)
    assert "left out 1 tensors that the model has no place for, as other" in caplog.text
