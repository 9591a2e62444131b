"""An exported model on ONNX Runtime, with a loop of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.lineage.console import log
from tasks.model.engines import onnx_graph
from tasks.model.engines.batching import BATCH, KEPT_SHARE, READ_AT_ONCE, batches, shared_prefix
from tasks.model.engines.genai import GenaiEngine
from tasks.model.engines.onnx_graph import Unsupported
from tasks.model.engines.protocol import Ids, OnDone, as_set, rooms

SMALL_MODEL = 64 * 2**20
"""Bytes of weights below which batches are answered side by side, a thread each. The weights of a larger
model come from memory at every token, which one batch then shares."""


class OnnxEngine:
    """A folder that `export_onnx` wrote, as it is served, on ONNX Runtime.

    The graph is that of onnxruntime-genai, but for the head, which is computed for one position a row.
    Padding stands behind a row, where nothing sees it, and the next token is written over it: attention
    is told each row's length.  A folder with a graph of another form is answered by onnxruntime-genai,
    and the log says why.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self._ends = as_set(settings["eos_token_id"])
        self._context: int = settings["context_length"]
        self._other: GenaiEngine | None = None
        try:
            self._graph = onnx_graph.load(folder, settings["decoder"], threads)
        except Unsupported as reason:
            log.info("%s is answered by onnxruntime-genai: %s", folder, reason)
            self._other = GenaiEngine(folder, threads)
            return
        weights = sum(file.stat().st_size for file in folder.glob("*.onnx*"))
        self._side_by_side = threads if weights < SMALL_MODEL else 1

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        if self._other is not None:
            return self._other.generate(prompts, max_new_tokens, on_done)
        new = rooms(prompts, max_new_tokens, self._context)
        if not prompts:
            return []
        shared = shared_prefix(prompts)
        stem = self._stem(prompts[0][:shared]) if shared else None
        answers: list[Ids] = [[] for _ in prompts]
        # few prompts come in small batches, so that each thread has one
        largest = min(BATCH, -(-len(prompts) // self._side_by_side))
        chosen = batches(prompts, new, self._graph.bytes_a_token, largest)

        def answer(batch: list[int]) -> list[Ids]:
            own = [prompts[index] for index in batch]
            return self._answer(own, [new[index] for index in batch], stem)

        with ThreadPoolExecutor(self._side_by_side) as pool:
            for batch, given in zip(chosen, pool.map(answer, chosen), strict=True):
                for index, ids in zip(batch, given, strict=True):
                    answers[index] = ids
                on_done(len(batch))
        return answers

    def _answer(self, prompts: Sequence[Ids], new: Sequence[int], stem: Any) -> list[Ids]:
        import numpy

        lengths = numpy.array([len(prompt) for prompt in prompts])
        cache = self._graph.buffers(len(prompts), int((lengths + new).max()))
        if stem is None:
            likeliest = self._read_padded(prompts, lengths, cache)
        else:
            likeliest = self._read_behind(stem, prompts, cache)

        answers: list[Ids] = [[] for _ in prompts]
        rows = numpy.arange(len(prompts))  # of the batch, by number of the prompt
        running = numpy.ones(len(prompts), bool)
        while True:
            for place in running.nonzero()[0].tolist():
                row, token = int(rows[place]), int(likeliest[place])
                if token in self._ends:
                    running[place] = False
                    continue
                answers[row].append(token)
                running[place] = len(answers[row]) < new[row]
            if not running.any():
                return answers
            if running.mean() <= KEPT_SHARE:
                cache = [buffer[running] for buffer in cache]
                rows, likeliest, lengths = rows[running], likeliest[running], lengths[running]
                running = running[running]
            lengths = lengths + running  # one that has ended stays where it is until it leaves
            filled = numpy.arange(int(lengths.max())) < lengths[:, None]
            last = numpy.zeros_like(lengths)
            likeliest = self._graph.step(likeliest[:, None], filled, lengths - 1, last, cache)

    def _read_padded(self, prompts: Sequence[Ids], lengths: Any, cache: list[Any]) -> Any:
        """Fill the cache of a batch, and return the likeliest token after each prompt."""
        import numpy

        rows = max(1, READ_AT_ONCE // int(lengths.max()))
        found = []
        for start in range(0, len(prompts), rows):
            part = slice(start, start + rows)
            width = int(lengths[part].max())
            ids = numpy.zeros((len(lengths[part]), width), numpy.int64)
            for row, prompt in zip(ids, prompts[part], strict=True):
                row[: len(prompt)] = prompt
            # padding counts as filled here: it stands behind all that is read
            filled = numpy.ones(ids.shape, bool)
            found.append(
                self._graph.step(
                    ids, filled, 0 * lengths[part], lengths[part] - 1, [b[part] for b in cache]
                )
            )
        return numpy.concatenate(found)

    def _read_behind(self, stem: Any, prompts: Sequence[Ids], cache: list[Any]) -> Any:
        """The same, of prompts whose beginning is known. Row by row: ONNX Runtime's attention reads
        several tokens behind others for one row alone."""
        import numpy

        done = stem[0].shape[2]
        found = []
        for row, prompt in enumerate(prompts):
            own = [buffer[row : row + 1] for buffer in cache]
            for buffer, known in zip(own, stem, strict=True):
                buffer[:, :, :done] = known
            ids = numpy.array([prompt[done:]], numpy.int64)
            filled = numpy.ones((1, len(prompt)), bool)
            start, last = numpy.array([done]), numpy.array([ids.shape[1] - 1])
            found.append(self._graph.step(ids, filled, start, last, own))
        return numpy.concatenate(found)

    def _stem(self, ids: Ids) -> list[Any]:
        """Keys and values of a common beginning."""
        import numpy

        cache = self._graph.buffers(1, len(ids))
        filled, start = numpy.ones((1, len(ids)), bool), numpy.zeros(1, numpy.int64)
        self._graph.step(numpy.array([ids], numpy.int64), filled, start, start, cache)
        return cache
