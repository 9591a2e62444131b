"""Engines by name, and what is said where one cannot be used."""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tasks.model import engines
from tasks.model.engines import (
    GenaiEngine,
    Ids,
    OnnxEngine,
    TransformersEngine,
    Unavailable,
    VllmEngine,
)

KINDS = {"onnx": OnnxEngine, "genai": GenaiEngine, "transformers": TransformersEngine}


def test_engines_by_name(lively_model: Path, exported: Path) -> None:
    for name, kind in KINDS.items():
        assert type(engines.load(name, lively_model, exported, 1)) is kind
    with pytest.raises(ValueError, match="tensorrt is no engine; known: onnx, genai"):
        engines.load("tensorrt", lively_model, exported, 1)


@pytest.mark.parametrize("name", ["onnx", "genai"])
def test_no_exported_model(name: str, lively_model: Path, tmp_path: Path) -> None:
    for onnx in (None, tmp_path):
        with pytest.raises(Unavailable, match=rf"{name} needs an exported model, .*merge\.onnx"):
            engines.load(name, lively_model, onnx, 1)


def test_vllm_is_not_installed(lively_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"vllm is not installed; `pip install vllm`"):
        engines.load("vllm", lively_model, None, 1)


def test_what_vllm_is_asked(lively_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of its interface: vLLM itself needs a GPU."""
    asked: dict[str, Any] = {}

    class LLM:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)
            config = SimpleNamespace(max_model_len=64)
            self.llm_engine = SimpleNamespace(model_config=config)

        def generate(self, prompts: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
            asked["prompts"], asked["sampling"] = prompts, sampling
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=(9, 8, 2, 7))]) for _ in prompts
            ]

    stand_in = ModuleType("vllm")
    stand_in.LLM = LLM  # type: ignore[attr-defined]
    stand_in.SamplingParams = lambda **values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: stand_in)
    done: list[int] = []
    engine = VllmEngine(lively_model, 1)
    assert engine.generate([[5, 6], [7] * 62], 4, done.append) == [[9, 8], [9, 8]]
    assert engine.generate([], 4, done.append) == []
    assert done == [2]
    assert (asked["skip_tokenizer_init"], asked["trust_remote_code"]) == (True, False)
    assert asked["prompts"][0] == {"prompt_token_ids": [5, 6]}
    first, second = asked["sampling"]
    assert (first["temperature"], first["max_tokens"], second["max_tokens"]) == (0.0, 4, 2)
    assert first["stop_token_ids"] == [2]


def test_a_graph_of_another_form_is_answered_by_genai(
    exported: Path, tmp_path: Path, prompts: list[Ids], caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    folder = shutil.copytree(exported, tmp_path / "onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:  # a head that is not found, with the same numbers
        if "logits" in node.output:
            node.output[0] = "bare"
    model.graph.node.append(onnx.helper.make_node("Identity", ["bare"], ["logits"]))
    onnx.save(model, folder / "model.onnx")
    with caplog.at_level(logging.INFO, "tunetrail"):
        engine = OnnxEngine(folder, 1)
    assert "is answered by onnxruntime-genai: its head cannot be found" in caplog.text
    expected = OnnxEngine(exported, 1).generate(prompts[:8], 6, lambda done: None)
    assert engine.generate(prompts[:8], 6, lambda done: None) == expected


def test_a_model_whose_cache_is_of_another_kind_is_answered_by_generate(
    tmp_path: Path, prompts: list[Ids], caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1
    )
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with caplog.at_level(logging.INFO, "tunetrail"):
        engine = TransformersEngine(tmp_path / "mamba", 1)
    assert "is answered by transformers' generate: its forward takes no" in caplog.text
    expected = engine.plainly(prompts[:6], 4, lambda done: None, at_once=1)
    assert engine.generate(prompts[:6], 4, lambda done: None) == expected


def test_naming_engines_loads_none_of_their_libraries() -> None:
    import subprocess

    code = (
        "import sys, tasks.model.engines\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'onnxruntime_genai', 'onnx', 'vllm'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    root = Path(importlib.import_module("tasks").__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
