"""vLLM, where it is installed: the engine of machines with a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.model.engines.protocol import Ids, OnDone, Unavailable, as_set, rooms, until


class VllmEngine:
    """A folder in Hugging Face format, on vLLM; it finds shared prefixes and refills its batches itself.

    It is tested against a stand-in of its interface alone: it was never run by this project's tests,
    which have no GPU.  `tunetrail engines` compares its tokens before it is chosen.

    Raises:
        Unavailable: when vLLM is not installed.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise Unavailable(
                "evaluate.engine: vllm is not installed; `pip install vllm` on a machine with a GPU, "
                "or set another engine in params.yaml: `tunetrail engines` shows which there are"
            )
        vllm: Any = importlib.import_module("vllm")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        generation = folder / "generation_config.json"
        stops = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        self._ends = as_set(stops.get("eos_token_id", config.get("eos_token_id")))
        self._library = vllm
        self._model = vllm.LLM(
            model=str(folder),
            skip_tokenizer_init=True,  # ids in, ids out
            enable_prefix_caching=True,
            trust_remote_code=False,
            seed=0,
            # the model's own settings may ask for sampling or a repetition penalty
            generation_config="vllm",
        )
        self._context: int = self._model.llm_engine.model_config.max_model_len

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        new = rooms(prompts, max_new_tokens, self._context)
        if not prompts:
            return []
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        greedy = [
            self._library.SamplingParams(
                temperature=0.0,
                max_tokens=room,
                stop_token_ids=sorted(self._ends),
                detokenize=False,
            )
            for room in new
        ]
        done = self._model.generate(asked, greedy, use_tqdm=False)
        on_done(len(prompts))
        return [until(list(each.outputs[0].token_ids), self._ends) for each in done]
