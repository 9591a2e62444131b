"""The models that are compared, and what each of them answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.evaluation.rows import Row
from tasks.lineage.hashes import file_hash
from tasks.model import chat
from tasks.model.engines import (
    Engine,
    Ids,
    Likelihood,
    OnDone,
    OnnxEngine,
    TransformersEngine,
)
from tasks.model.export import export_onnx, exported_precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROBES = 16
"""Test prompts that are answered one by one, to time an answer as a user would see it."""

_DECIDES_ANSWERS = ("*.safetensors", "config.json", "generation_config.json", "tokenizer.json")


@dataclass(frozen=True)
class Prepared:
    """Rows as token ids."""

    prompts: list[Ids]
    scored: list[tuple[Ids, Ids]]
    """Ids of the whole conversation, and a mask that is 1 at the last answer."""


@dataclass(frozen=True)
class Answers:
    """What one model said, in the order of the rows."""

    texts: list[str]
    likelihoods: list[Likelihood]
    probes: list[Ids]
    """Answers to the first PROBES prompts, asked one by one."""
    timings: Mapping[str, float]
    """Clock readings; for the run's log, never for an output."""


def prepare(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Render rows with the model's own chat template."""
    conversations = chat.all_or_raise(chat.render_many([row.messages for row in rows], tokenizer))
    prompts = chat.all_or_raise(chat.render_prompts([row.prompt for row in rows], tokenizer))
    return Prepared(prompts, [(one.ids, last_answer(one.mask)) for one in conversations])


def last_answer(mask: Sequence[int]) -> list[int]:
    """A mask with its last run of ones alone."""
    end = len(mask) - mask[::-1].index(1)
    start = end
    while start and mask[start - 1]:
        start -= 1
    return [0] * start + [1] * (end - start) + [0] * (len(mask) - end)


def alike(models: Mapping[str, Path]) -> list[list[str]]:
    """Candidates in groups of equal content: a stage that is switched off hands on what it got."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, folder in models.items():
        files = (file for pattern in _DECIDES_ANSWERS for file in sorted(folder.glob(pattern)))
        groups.setdefault(tuple(file_hash(file, "sha256") for file in files), []).append(name)
    return list(groups.values())


def export(models: Mapping[str, Path], served: Path, folder: Path) -> dict[str, Path]:
    """Export models the way the served one was, so that candidates differ in training alone.

    Returns:
        the exported folder of each model, below `folder`.
    """
    exported = {name: folder / f"{name}-onnx" for name in models}
    export_onnx([(models[name], exported[name]) for name in models], exported_precision(served))
    return exported


def answer(
    model: Path,
    onnx: Path | None,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerFast,
    max_new_tokens: int,
    threads: int,
    on_done: OnDone,
) -> Answers:
    """Answer and score every row; `on_done` counts each row twice.

    Args:
        model: a folder in Hugging Face format, which scores the expected answers.
        onnx: the same model as exported, which answers; None to answer with `model` too.
    """
    trained = TransformersEngine(model, threads)
    scores = trained.score(prepared.scored, on_done)
    engine: Engine = OnnxEngine(onnx, threads) if onnx else trained
    start = time.perf_counter()
    ids = engine.generate(prepared.prompts, max_new_tokens, on_done)
    seconds = time.perf_counter() - start
    probes, waits = _one_by_one(engine, prepared.prompts[:PROBES], max_new_tokens)
    return Answers(
        texts=[tokenizer.decode(answer, skip_special_tokens=True) for answer in ids],
        likelihoods=scores,
        probes=probes,
        timings={
            "tokens_per_second": sum(len(answer) + 1 for answer in ids) / seconds,
            "latency_p50_seconds": _quantile(waits, 0.5),
            "latency_p95_seconds": _quantile(waits, 0.95),
        },
    )


def _one_by_one(
    engine: Engine, prompts: Sequence[Ids], max_new_tokens: int
) -> tuple[list[Ids], list[float]]:
    answers, waits = [], []
    for prompt in prompts:
        start = time.perf_counter()
        answers += engine.generate([prompt], max_new_tokens, lambda done: None)
        waits.append(time.perf_counter() - start)
    return answers, waits


def _quantile(values: Sequence[float], share: float) -> float:
    import numpy

    return float(numpy.quantile(values, share))


def served_equals_trained(
    merged: Path, served: Sequence[Ids], prompts: Sequence[Ids], max_new_tokens: int, threads: int
) -> float:
    """Share of prompts to which the exported model gives the same tokens as the trained one."""
    trained = TransformersEngine(merged, threads).generate(
        prompts, max_new_tokens, lambda done: None
    )
    equal = [left == right for left, right in zip(served, trained, strict=True)]
    return sum(equal) / len(equal)
