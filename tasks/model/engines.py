"""Generation engines: prompts of token ids in, greedy answers out, whatever runs the model.

Prompts are batched by equal length.  Padding changes what a model computes (with left padding,
onnxruntime-genai gave other tokens for 22 of 24 prompts of a Gemma model), so none is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tasks.lineage.stage import StageError
from tasks.model.load import load_model

BATCH = 32
"""Prompts answered at once; bounds memory, and how seldom progress is reported."""
SCORED_BATCH = 16
"""Conversations scored at once; with a vocabulary of 262k one takes about 50 MB of logits."""

Ids = list[int]
OnDone = Callable[[int], None]
"""Called with the number of prompts that have just been answered."""


class Engine(Protocol):
    """A loaded model that answers prompts."""

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        """The most likely token at each step, until an end token or `max_new_tokens`.

        Args:
            prompts: token ids, with the generation prompt at the end.
            max_new_tokens: the longest answer.

        Returns:
            For each prompt the answer's ids, without the prompt and without the end token.

        Raises:
            StageError: when a prompt fills the model's context.
        """


class OnnxEngine:
    """A folder that `export_onnx` wrote, on onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self._ends = _as_set(settings["eos_token_id"])
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
        answers: list[Ids] = [[] for _ in prompts]
        for batch in batches_of_equal_length(prompts):
            length = len(prompts[batch[0]])
            new = room(length, max_new_tokens, self._context)
            sequences = self._answer([prompts[index] for index in batch], length, new)
            for index, sequence in zip(batch, sequences, strict=True):
                answers[index] = until(sequence[length : length + new], self._ends)
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


class Likelihood(NamedTuple):
    """How likely a model finds a reference answer."""

    nll: float
    """Negative log-likelihood of the scored tokens, summed, in nats."""
    tokens: int
    """Number of scored tokens."""


class TransformersEngine:
    """A folder in Hugging Face format, on torch: on the GPU if there is one, else in fp32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model: Any = load_model(folder).eval()
        self._ends = _as_set(self._model.generation_config.eos_token_id)
        text = self._model.config.get_text_config()
        self._context: int = getattr(text, "max_position_embeddings", sys.maxsize)

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        import torch
        from transformers import GenerationConfig

        answers: list[Ids] = [[] for _ in prompts]
        for batch in batches_of_equal_length(prompts):
            length = len(prompts[batch[0]])
            new = room(length, max_new_tokens, self._context)
            ids = torch.tensor([prompts[index] for index in batch], device=self._model.device)
            # a config of our own: the model's may ask for sampling or a repetition penalty
            greedy = GenerationConfig(
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=sorted(self._ends) or None,
                pad_token_id=min(self._ends, default=0),
            )
            with torch.inference_mode():
                sequences = self._model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=greedy
                )
            for index, sequence in zip(batch, sequences.tolist(), strict=True):
                answers[index] = until(sequence[length:], self._ends)
            on_done(len(batch))
        return answers

    def score(self, rows: Sequence[tuple[Ids, Ids]], on_done: OnDone) -> list[Likelihood]:
        """How likely the model finds given answers.

        Args:
            rows: (ids, mask) of a conversation; mask is 1 at the tokens to score.
        """
        import torch

        device = self._model.device
        scores = [Likelihood(0.0, 0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index][0]), index))
        for start in range(0, len(order), SCORED_BATCH):
            batch = order[start : start + SCORED_BATCH]
            # padding behind a row cannot change it: a token sees only what stands before it
            longest = len(rows[batch[-1]][0])
            padded = [_padded(rows[index], longest) for index in batch]
            ids = torch.tensor([row for row, _ in padded], device=device)
            # logits at a position predict the next one
            mask = torch.tensor([row for _, row in padded], device=device)[:, 1:].bool()
            asked = mask.any(0).nonzero().squeeze(1)
            with torch.inference_mode():
                output = self._model(input_ids=ids, logits_to_keep=asked, use_cache=False)
                losses = torch.nn.functional.cross_entropy(
                    output.logits.float().flatten(0, 1),
                    ids[:, asked + 1].flatten(),
                    reduction="none",
                )
            kept = losses.double().view(len(batch), -1) * mask[:, asked]
            counts = mask.sum(1).tolist()
            for index, nll, tokens in zip(batch, kept.sum(1).tolist(), counts, strict=True):
                scores[index] = Likelihood(nll, tokens)
            on_done(len(batch))
        return scores


def batches_of_equal_length(prompts: Sequence[Ids]) -> Iterator[list[int]]:
    """Indexes of prompts, shortest first, at most BATCH at once, all of one length."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) == BATCH or len(prompts[batch[0]]) != len(prompts[index])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def room(length: int, max_new_tokens: int, context: int) -> int:
    """How many tokens an answer may have behind a prompt of `length` tokens.

    Raises:
        StageError: when there is no room for one.
    """
    if length >= context:
        raise StageError(
            f"a prompt of {length} tokens leaves no room for an answer in the model's context of "
            f"{context}; lower format.max_tokens in params.yaml"
        )
    return min(max_new_tokens, context - length)


def until(ids: Ids, ends: set[int]) -> Ids:
    """The ids before the first end token."""
    return next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)


def _padded(row: tuple[Ids, Ids], length: int) -> tuple[Ids, Ids]:
    ids, mask = row
    padding = [0] * (length - len(ids))
    return ids + padding, mask + padding


def _as_set(ids: int | list[int] | None) -> set[int]:
    return {ids} if isinstance(ids, int) else set(ids or ())
