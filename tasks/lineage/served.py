"""The model as MLflow serves it: a message in, an answer out.

MLflow copies this one file into the model's folder and loads it from there, so it imports nothing
of this repository.  It extends a class of MLflow, which reads the types of `predict` when it is
loaded: hence the imports at the top, which no stage pays for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class _Engine(Protocol):
    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """The most likely token at each step, without the token that ends the answer."""


class Served(PythonModel):  # type: ignore[misc]
    """Artifacts: `model`, a folder for onnxruntime-genai or one in Hugging Face format; `contract`,
    how the model's chats are rendered; `settings`, {system, max_new_tokens}."""

    def load_context(self, context: Any) -> None:
        from transformers import AutoTokenizer

        folder = Path(context.artifacts["model"])
        contract = _read_json(context.artifacts["contract"])
        self._settings = _read_json(context.artifacts["settings"])
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._check(contract)
        onnx = (folder / "genai_config.json").is_file()
        self._engine: _Engine = _OnnxEngine(folder) if onnx else _TransformersEngine(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Answer each text in the column `message`."""
        answers = [self._answer(str(message)) for message in model_input["message"]]
        return pd.DataFrame({"answer": answers}, index=model_input.index)

    def _answer(self, message: str) -> str:
        for token in self._tokenizer.all_special_tokens:
            if token in message:
                raise ValueError(
                    f"the message holds the special token {token}, which the model would read as "
                    "an instruction of its template; remove it"
                )
        turns = [{"role": "user", "content": message}]
        if self._settings["system"] is not None:
            turns.insert(0, {"role": "system", "content": self._settings["system"]})
        prompt = self._encode(turns, ask=True)
        ids = self._engine.answer(prompt, self._settings["max_new_tokens"])
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, turns: Sequence[dict[str, str]], ask: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=ask
        )
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check(self, contract: dict[str, Any]) -> None:
        """Refuse to answer when chats are not rendered as they were in training."""
        for fixture in contract["fixtures"]:
            if fixture and self._encode(fixture["messages"], ask=False) != fixture["ids"]:
                raise ValueError(
                    "this tokenizer renders a chat otherwise than the model was trained with; "
                    "install the versions in the model's requirements.txt"
                )


class _OnnxEngine:
    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai

        settings = _read_json(folder / "genai_config.json")["model"]
        self._ends = _as_set(settings["eos_token_id"])
        self._context: int = settings["context_length"]
        # a model with sliding-window layers fails on a buffer shorter than its window
        window = settings["decoder"].get("sliding_window") or {}
        self._shortest: int = min(window.get("window_size", 0), self._context)
        self._library = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(folder))

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        new = _room(len(prompt), max_new_tokens, self._context)
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(
            max_length=max(len(prompt) + new, self._shortest),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
        )
        generator = self._library.Generator(self._model, parameters)
        generator.append_tokens(list(prompt))
        ids: list[int] = []
        while len(ids) < new and not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        return _until(ids, self._ends)


class _TransformersEngine:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="float32"
        )
        self._ends = _as_set(model.generation_config.eos_token_id)
        self._context: int = model.config.get_text_config().max_position_embeddings
        virtual = folder / "adapter"  # tokens that were trained, to stand before each prompt
        if virtual.is_dir():
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, virtual)
            self._context -= model.active_peft_config.num_virtual_tokens
        self._model = model.eval()

    def answer(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        import torch
        from transformers import GenerationConfig

        greedy = GenerationConfig(
            max_new_tokens=_room(len(prompt), max_new_tokens, self._context),
            do_sample=False,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
        )
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            sequences = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=greedy
            )
        return _until(sequences[0, len(prompt) :].tolist(), self._ends)


def _room(length: int, max_new_tokens: int, context: int) -> int:
    if length >= context:
        raise ValueError(
            f"the message makes a prompt of {length} tokens, and the model reads {context}; "
            "shorten it"
        )
    return min(max_new_tokens, context - length)


def _until(ids: list[int], ends: set[int]) -> list[int]:
    return next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)


def _as_set(ids: int | list[int] | None) -> set[int]:
    return {ids} if isinstance(ids, int) else set(ids or ())


def _read_json(path: str | Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def answer(artifacts: Mapping[str, str], question: pd.DataFrame) -> pd.DataFrame:
    """What the model will answer once MLflow serves it; to try that before it is registered."""
    model = Served()
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return model.predict(None, question)


set_model(Served())
