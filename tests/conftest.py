"""What all tests share: no network, no telemetry, and a tiny model that is built here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.params import Compute, Params

ROOT = Path(__file__).resolve().parents[1]

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "1000",
}

TEXT = [
    "the truck is running late and stuck in traffic, delivery tomorrow",
    "held by customs, invoice missing, no date yet",
    'the answer is {"category":"delivery_delay","eta":"1-2d"}',
    'the answer is {"category":"customs_hold","eta":"unknown"}',
    "two pallets arrived damaged, please advise",
] * 4


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.1 million random weights with tokenizer and chat template, in Hugging Face format."""
    import torch

    from tasks.model import scratch, source
    from tasks.params import load

    settings = load(ROOT / "params.yaml").base.scratch.model_copy(
        update={
            "vocab_size": 400,
            "hidden_size": 64,
            "layers": 2,
            "heads": 2,
            "intermediate_size": 128,
        }
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = scratch.build_tokenizer(TEXT, settings)
    source.save(scratch.build_model(tokenizer, settings), tokenizer, folder)
    source.write_manifest(folder)
    return folder


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


@pytest.fixture(scope="session")
def params() -> Params:
    """The values that the repository ships."""
    from tasks.params import load

    return load(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def compute(params: Params) -> Compute:
    return params.compute
