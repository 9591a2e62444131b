"""Engines by the name that params.yaml gives them."""

from __future__ import annotations

from pathlib import Path

from tasks.model.engines.genai import GenaiEngine
from tasks.model.engines.onnx_runtime import OnnxEngine
from tasks.model.engines.protocol import Engine, Unavailable
from tasks.model.engines.transformers_loop import TransformersEngine
from tasks.model.engines.vllm import VllmEngine
from tasks.model.load import ADAPTER, virtual_tokens

NAMES = ("onnx", "genai", "transformers", "vllm")


def load(name: str, model: Path, onnx: Path | None, threads: int) -> Engine:
    """The engine of a name, with a model loaded.

    Args:
        name: one of NAMES; `onnx` and `genai` take the exported model, the others the folder in
            Hugging Face format.
        onnx: the folder that was exported from `model`, or None where there is none.

    Raises:
        Unavailable: when the engine is not installed, there is no exported model for it, or it cannot
            put virtual tokens before a prompt.
    """
    if name != "transformers" and virtual_tokens(model):
        raise Unavailable(
            f"evaluate.engine: {name} cannot read the virtual tokens in {model / ADAPTER}; set "
            "evaluate.engine to transformers"
        )
    if name in ("onnx", "genai"):
        if onnx is None or not (onnx / "genai_config.json").is_file():
            raise Unavailable(
                f"evaluate.engine: {name} needs an exported model, and {onnx or model} has no "
                "genai_config.json; set merge.onnx to true, or evaluate.engine to transformers"
            )
        return OnnxEngine(onnx, threads) if name == "onnx" else GenaiEngine(onnx, threads)
    if name == "transformers":
        return TransformersEngine(model, threads)
    if name == "vllm":
        return VllmEngine(model, threads)
    raise ValueError(f"{name} is no engine; known: {', '.join(NAMES)}")
