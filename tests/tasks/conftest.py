"""What the tests of stages and of their rooms share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lively_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights: as it is built it only repeats the last token."""
    import torch

    from tasks.model import chat, load, source

    model = load.load_model(tiny_model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.dim() == 2:
                weight.mul_(10)
    folder = tmp_path_factory.mktemp("lively") / "model"
    source.save(model, chat.load_tokenizer(tiny_model), folder)
    return folder


@pytest.fixture(scope="session")
def exported(lively_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lively model as an onnxruntime-genai folder; the builder takes seconds to load."""
    from tasks.model.export import export_onnx

    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_onnx([(lively_model, folder)], "fp32")
    return folder
