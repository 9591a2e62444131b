"""transformers, with a loop of our own in place of its `generate`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.lineage.console import log
from tasks.model.engines.batching import (
    KEPT_SHARE,
    READ_AT_ONCE,
    SHARED,
    batches,
    runs_of_equal_length,
    shared_prefix,
)
from tasks.model.engines.protocol import Ids, Likelihood, OnDone, as_set, rooms, until
from tasks.model.load import load_model, virtual_tokens

SCORED_BATCH = 16
"""Conversations scored at once; with a vocabulary of 262k one takes about 50 MB of logits."""


class TransformersEngine:
    """A folder in Hugging Face format, on torch: on the GPU if there is one, else in fp32.

    Prompts are read without padding, those of one length together, and then continue in one batch,
    whatever their lengths.  A model that keeps more than keys and values (a recurrent one, say) is
    answered by transformers' own `generate`, and the log says why.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model: Any = load_model(folder).eval()
        self._ends = as_set(self._model.generation_config.eos_token_id)
        text = self._model.config.get_text_config()
        self._virtual = virtual_tokens(folder)
        positions: int = getattr(text, "max_position_embeddings", sys.maxsize)
        self._context = positions - self._virtual
        self._unsupported = self._why_not()
        if self._unsupported:
            log.info("%s is answered by transformers' generate: %s", folder, self._unsupported)

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        import torch

        new = rooms(prompts, max_new_tokens, self._context)
        if not prompts:
            return []
        if self._unsupported:
            return self.plainly(prompts, max_new_tokens, on_done)
        answers: list[Ids] = [[] for _ in prompts]
        with torch.inference_mode():
            stem = self._stem(prompts[0], shared_prefix(prompts))
            for batch in batches(prompts, new, stem.bytes_a_token):
                chosen = [prompts[index] for index in batch]
                given = self._answer(chosen, [new[index] for index in batch], stem)
                for index, answer in zip(batch, given, strict=True):
                    answers[index] = answer
                on_done(len(batch))
        return answers

    def plainly(
        self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone, at_once: int = 32
    ) -> list[Ids]:
        """What transformers' `generate` answers; one at once is what all engines are compared with."""
        import torch
        from transformers import GenerationConfig

        new = rooms(prompts, max_new_tokens, self._context)
        answers: list[Ids] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        for run in runs_of_equal_length(prompts, order):
            for start in range(0, len(run), at_once):
                batch = run[start : start + at_once]
                ids = torch.tensor([prompts[index] for index in batch], device=self._model.device)
                # a config of our own: the model's may ask for sampling or a repetition penalty
                greedy = GenerationConfig(
                    max_new_tokens=new[batch[0]],
                    do_sample=False,
                    eos_token_id=sorted(self._ends) or None,
                    pad_token_id=min(self._ends, default=0),
                )
                with torch.inference_mode():
                    sequences = self._model.generate(
                        ids, attention_mask=torch.ones_like(ids), generation_config=greedy
                    )
                for index, sequence in zip(batch, sequences.tolist(), strict=True):
                    answers[index] = until(sequence[len(prompts[index]) :], self._ends)
                on_done(len(batch))
        return answers

    def score(self, rows: Sequence[tuple[Ids, Ids]], on_done: OnDone) -> list[Likelihood]:
        """How likely the model finds given answers.

        Args:
            rows: (ids, mask) of a conversation; mask is 1 at the tokens to score.
        """
        import torch

        scores = [Likelihood(0.0, 0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index][0]), index))
        with torch.inference_mode():
            shared = 0 if self._unsupported else _shared_before_answers(rows)
            stem = self._stem(rows[0][0], shared) if shared else None
            for start in range(0, len(order), SCORED_BATCH):
                batch = order[start : start + SCORED_BATCH]
                for index, score in zip(
                    batch, self._scored([rows[index] for index in batch], stem), strict=True
                ):
                    scores[index] = score
                on_done(len(batch))
        return scores

    def _scored(self, rows: Sequence[tuple[Ids, Ids]], stem: Any) -> list[Likelihood]:
        import torch

        device = self._model.device
        done = stem.length if stem else 0
        # padding behind a row cannot change it: a token sees only what stands before it
        longest = max(len(ids) for ids, _ in rows)
        padded = [_padded(row, longest) for row in rows]
        ids = torch.tensor([ids[done:] for ids, _ in padded], device=device)
        # logits at a position predict the next one
        mask = torch.tensor([mask[done:] for _, mask in padded], device=device)[:, 1:].bool()
        asked = mask.any(0).nonzero().squeeze(1)
        cache = {"past_key_values": stem.cache(len(rows))} if stem else {}
        # counted from the end, since virtual tokens may stand before the first
        output = self._model(
            input_ids=ids,
            logits_to_keep=asked - ids.shape[1],
            use_cache=stem is not None,
            **cache,
        )
        losses = torch.nn.functional.cross_entropy(
            output.logits.float().flatten(0, 1), ids[:, asked + 1].flatten(), reduction="none"
        )
        kept = losses.double().view(len(rows), -1) * mask[:, asked]
        counts = mask.sum(1).tolist()
        return [
            Likelihood(nll, tokens)
            for nll, tokens in zip(kept.sum(1).tolist(), counts, strict=True)
        ]

    def _answer(self, prompts: Sequence[Ids], new: Sequence[int], stem: Any) -> list[Ids]:
        """The answers of one batch, of prompts sorted by length, the longest first."""
        import torch

        from tasks.model.engines.growing_cache import Buffer

        device = self._model.device
        width = len(prompts[0])
        lengths = [len(prompt) for prompt in prompts]
        buffer = Buffer(stem, len(prompts), width + max(new))
        likeliest = torch.cat(
            [
                self._read(prompts, part, width, stem, buffer)
                for run in runs_of_equal_length(prompts, range(len(prompts)))
                for part in _parts(run, lengths[run[0]] - stem.length)
            ]
        )

        answers: list[Ids] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # of the batch, by number of the prompt
        running = set(rows)
        cache = buffer.answers(width)
        positions = torch.tensor(lengths, device=device)
        while True:
            for row, token in zip(rows, likeliest.tolist(), strict=True):
                if row in running:
                    if token in self._ends:
                        running.remove(row)
                        continue
                    answers[row].append(token)
                    if len(answers[row]) == new[row]:
                        running.remove(row)
            if not running:
                return answers
            if len(running) <= KEPT_SHARE * len(rows):
                kept = [place for place, row in enumerate(rows) if row in running]
                filled = cache.get_seq_length()
                buffer.keep(kept)
                cache = buffer.answers(filled)
                rows = [rows[place] for place in kept]
                likeliest, positions = likeliest[kept], positions[kept]
            output = self._model(
                input_ids=likeliest[:, None],
                attention_mask=_unpadded([lengths[row] for row in rows], width, cache, device),
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            likeliest = output.logits[:, -1].argmax(-1)
            positions = positions + 1

    def _read(
        self, prompts: Sequence[Ids], part: Sequence[int], width: int, stem: Any, buffer: Any
    ) -> Any:
        """Fill the cache of prompts of one length, and return the likeliest token after each."""
        import torch

        first, last = part[0], part[-1] + 1
        own = [prompts[index][stem.length :] for index in part]
        cache = buffer.prompt(stem, first, last, width - len(prompts[first]), width)
        output = self._model(
            input_ids=torch.tensor(own, device=self._model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].argmax(-1)

    def _stem(self, ids: Ids, length: int) -> Any:
        """The cache of a common beginning; of one token, to see its shapes, where there is none."""
        import torch
        from transformers import DynamicCache

        from tasks.model.engines.growing_cache import Stem

        cache = DynamicCache(config=self._model.config)
        self._model(
            input_ids=torch.tensor([ids[: max(length, 1)]], device=self._model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return Stem(cache, length)

    def _why_not(self) -> str | None:
        from tasks.model.engines.growing_cache import unsupported

        if self._virtual:
            return "virtual tokens that were trained stand before each prompt"
        taken = inspect.signature(self._model.forward).parameters
        missing = {"past_key_values", "position_ids", "logits_to_keep"} - set(taken)
        if missing:
            return f"its forward takes no {' and no '.join(sorted(missing))}"
        return unsupported(self._model)


def _parts(run: Sequence[int], tokens: int) -> list[Sequence[int]]:
    """A run of prompts in parts that one forward pass reads."""
    rows = max(1, READ_AT_ONCE // tokens)
    return [run[start : start + rows] for start in range(0, len(run), rows)]


def _unpadded(lengths: Sequence[int], width: int, cache: Any, device: Any) -> Any:
    """The mask of columns that hold a token of the row; None where all do."""
    import torch

    if min(lengths) == width:
        return None
    columns = torch.arange(cache.get_seq_length() + 1, device=device)
    starts = width - torch.tensor(lengths, device=device)
    return (columns >= starts[:, None]).long()


def _shared_before_answers(rows: Sequence[tuple[Ids, Ids]]) -> int:
    """Tokens that all conversations begin with, before the first that is scored."""
    shared = shared_prefix([ids for ids, _ in rows])
    answers = (mask.index(1) for _, mask in rows if 1 in mask)
    # the token before an answer predicts it, so it is read with the rest
    length = min(shared, min(answers, default=shared + 1) - 1)
    return length if length >= SHARED else 0


def _padded(row: tuple[Ids, Ids], length: int) -> tuple[Ids, Ids]:
    ids, mask = row
    padding = [0] * (length - len(ids))
    return ids + padding, mask + padding
