"""What all tests share: no network, no telemetry, and a tiny model that is built here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.model import load
from tasks.params import Compute, Params

ROOT = Path(__file__).resolve().parents[1]

LONGEST = (
    "tests/test_end_to_end.py",
    "tests/flows/test_drift_loop.py",
    "tests/flows/test_up.py",
    "tests/flows/test_reproduce.py",
    "tests/flows/test_retrain.py",
    "tests/flows/test_drift_check.py",
    "tests/flows/test_gc.py",
    "tests/flows/test_registry_server.py",
    "tests/flows/test_pipeline.py",
    "tests/flows/test_kills.py",
    "tests/tasks/test_methods.py",
    "tests/tasks/training/test_kills_of_training.py",
    "tests/tasks/lineage/test_tampering.py",
    "tests/tasks/lineage/test_promotion.py",
)
"""Test files that take long, which begin first, so that no worker of pytest-xdist is left with one."""

MakeOnce = Callable[[str, Callable[[Path], None]], Path]

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def models_as_they_come() -> Iterator[None]:
    """A stage says how its process loads models; here a process runs many."""
    yield
    load.use(None, None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Gives the folder of a name, filled by the first worker of pytest-xdist that asks for it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = base / name, base / f"{name}.whole"
        with FileLock(base / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed at it
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_model(made_once: MakeOnce) -> Path:
    """A Llama of 0.1 million random weights with tokenizer and chat template, in Hugging Face format."""
    return made_once("tiny", _save_tiny_model) / "model"


def _save_tiny_model(folder: Path) -> None:
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
    tokenizer = scratch.build_tokenizer(TEXT, settings)
    source.save(scratch.build_model(tokenizer, settings), tokenizer, folder / "model")
    source.write_manifest(folder / "model")


@pytest.fixture(scope="session")
def lively_model(tiny_model: Path, made_once: MakeOnce) -> Path:
    """The tiny model with larger weights: as it is built it only repeats the last token."""

    def save(folder: Path) -> None:
        import torch

        from tasks.model import chat, load, source

        model = load.load_model(tiny_model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "layers" in name and weight.dim() == 2:
                    weight.mul_(10)
        source.save(model, chat.load_tokenizer(tiny_model), folder / "model")

    return made_once("lively", save) / "model"


@pytest.fixture(scope="session")
def exported(lively_model: Path, made_once: MakeOnce) -> Path:
    """The lively model as an onnxruntime-genai folder; the builder takes seconds to load."""

    def export(folder: Path) -> None:
        from tasks.model.export import export_onnx

        export_onnx([(lively_model, folder / "onnx")], "fp32")

    return made_once("exported", export) / "onnx"


@pytest.fixture(scope="session")
def params() -> Params:
    """The values that the repository ships."""
    from tasks.params import load

    return load(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def compute(params: Params) -> Compute:
    return params.compute


@pytest.fixture(scope="session")
def settled(compute: Compute) -> Compute:
    """As `tasks.training.machine` resolves it on a CPU."""
    return compute.model_copy(
        update={
            "dtype": "float32",
            "attention": "sdpa",
            "gradient_checkpointing": False,
            "pass_tokens": None,
        }
    )
