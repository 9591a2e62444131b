"""onnxruntime-genai, the library that a team serves an exported model with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.model.engines.batching import BATCH, runs_of_equal_length
from tasks.model.engines.protocol import Ids, OnDone, as_set, rooms, until


class GenaiEngine:
    """A folder that `export_onnx` wrote, on onnxruntime-genai.

    Prompts of one length are answered together: with padding it gave other tokens for 22 of 24 prompts
    of a Gemma model.  Its generators neither share a prefix nor let rows go, since `rewind_to` takes a
    batch back to its beginning alone.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self._ends = as_set(settings["eos_token_id"])
        self._context: int = settings["context_length"]
        # a model with sliding-window layers fails on a buffer shorter than its window
        window = settings["decoder"].get("sliding_window") or {}
        self._shortest: int = min(window.get("window_size", 0), self._context)
        config = onnxruntime_genai.Config(str(folder))
        session = {
            "intra_op_num_threads": threads,
            # threads that spin while they wait halve the speed when another process wants a core
            "session.intra_op.allow_spinning": "0",
        }
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._library = onnxruntime_genai
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        new = rooms(prompts, max_new_tokens, self._context)
        answers: list[Ids] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        for run in runs_of_equal_length(prompts, order):
            for start in range(0, len(run), BATCH):
                batch = run[start : start + BATCH]
                length, room = len(prompts[batch[0]]), new[batch[0]]
                sequences = self._answer([prompts[index] for index in batch], length, room)
                for index, sequence in zip(batch, sequences, strict=True):
                    answers[index] = until(sequence[length : length + room], self._ends)
                on_done(len(batch))
        return answers

    def _answer(self, prompts: Sequence[Ids], length: int, new: int) -> list[Ids]:
        import numpy

        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(
            batch_size=len(prompts),
            max_length=max(length + new, self._shortest),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
        )
        generator = self._library.Generator(self._model, parameters)
        generator.append_tokens(numpy.array(prompts, dtype=numpy.int32))
        for _ in range(new):
            generator.generate_next_token()
            if generator.is_done():
                break
        return [generator.get_sequence(index).tolist() for index in range(len(prompts))]
