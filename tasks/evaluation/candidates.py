"""The candidates that are compared, and what each of them answers."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tasks.evaluation import prompting, retrieval
from tasks.evaluation.classical import Classifier
from tasks.evaluation.metrics import Answered
from tasks.evaluation.prompting import Fitted, Question, Tried
from tasks.evaluation.rows import Row
from tasks.lineage.console import log
from tasks.lineage.hashes import file_hash, sha256, sha256_json
from tasks.lineage.stage import StageError
from tasks.model import chat, engines
from tasks.model.engines import Engine, Ids, Likelihood, OnDone, TransformersEngine
from tasks.model.export import export_onnx, exported_precision
from tasks.model.load import ADAPTER, virtual_tokens
from tasks.params import Retrieval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")

PROBES, PROBES_OF_FINAL = 16, 64
"""Test prompts that are answered one by one, to time an answer as a user would see it."""
COMPARED = 16
"""Prompts on which the exported model is compared with transformers."""
EXPORTED_ENGINES = ("onnx", "genai")

_DECIDES_ANSWERS = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "chat_template.jinja",
    f"{ADAPTER}/*",
)
_OF_THE_LOADER = ("is_local", "local_files_only", "name_or_path")
"""Keys of tokenizer_config.json that tell how it was read, not what it does."""


@dataclass(frozen=True)
class Answers:
    """What a candidate said, in the order of the rows; None for a row that it was not asked."""

    texts: list[str | None]
    likelihoods: list[Likelihood | None]
    tokens_in: float
    tokens_out: float
    """A request on the test, on average."""
    timings: Mapping[str, float]
    """Clock readings; for the run's log, never for an output."""


@dataclass(frozen=True)
class Exported:
    """A model folder, and the same model as exported, where it is."""

    folder: Path
    onnx: Path | None


class Model:
    """A model that answers and scores.  Weights are read when they are first needed, and those of one
    engine at a time are held."""

    def __init__(self, exported: Exported, engine: str, threads: int) -> None:
        self._exported = exported
        self._name = engine
        self._threads = threads
        self._engine: Engine | None = None
        self._scorer: TransformersEngine | None = None
        self.tokenizer: PreTrainedTokenizerFast = chat.load_tokenizer(exported.folder)
        self.context = _context(exported.folder)

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        return self._answering().generate(prompts, max_new_tokens, on_done)

    def score(self, questions: Sequence[Question], on_done: OnDone) -> list[Likelihood]:
        """How likely the model finds the expected answers to these questions."""
        solved = chat.render_many([question.solved for question in questions], self.tokenizer)
        scored = [(one.ids, last_answer(one.mask)) for one in chat.all_or_raise(solved)]
        return self._scoring().score(scored, on_done)

    def plainly(self, prompts: Sequence[Ids], max_new_tokens: int) -> list[Ids]:
        """What transformers' own `generate` answers, one prompt at a time."""
        return self._scoring().plainly(prompts, max_new_tokens, lambda done: None, at_once=1)

    def decode(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _answering(self) -> Engine:
        if self._engine is None:
            if self._name == "transformers":
                self._engine = self._scoring()
            else:
                self._scorer = None  # an engine may want all of a GPU
                self._engine = engines.load(
                    self._name, self._exported.folder, self._exported.onnx, self._threads
                )
        return self._engine

    def _scoring(self) -> TransformersEngine:
        if self._scorer is None:
            if self._name == "vllm":
                self._engine = None
            self._scorer = TransformersEngine(self._exported.folder, self._threads)
        return self._scorer


def _context(folder: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    context = int(getattr(config, "max_position_embeddings", None) or sys.maxsize)
    return context - virtual_tokens(folder)


def last_answer(mask: Sequence[int]) -> list[int]:
    """A mask with its last run of ones alone."""
    end = len(mask) - mask[::-1].index(1)
    start = end
    while start and mask[start - 1]:
        start -= 1
    return [0] * start + [1] * (end - start) + [0] * (len(mask) - end)


def content(folder: Path) -> tuple[str, ...]:
    """What decides how a model answers: a stage that is switched off hands on what it got."""
    files = (file for pattern in _DECIDES_ANSWERS for file in sorted(folder.glob(pattern)))
    hashes = [f"{file.name} {file_hash(file, 'sha256')}" for file in files]
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        told = json.loads(tokenizer.read_text(encoding="utf-8"))
        hashes.append(sha256_json({key: told[key] for key in told if key not in _OF_THE_LOADER}))
    return tuple(hashes)


def alike(models: Mapping[str, Exported], engine: str) -> list[list[str]]:
    """Candidates in groups of equal content, of what the engine reads."""
    exports: dict[Path | None, str] = {None: ""}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, model in models.items():
        onnx = model.onnx if engine in EXPORTED_ENGINES else None
        if onnx and onnx not in exports:
            exports[onnx] = sha256(onnx)
        groups.setdefault((*content(model.folder), exports[onnx]), []).append(name)
    return list(groups.values())


def export(models: Mapping[str, Exported], served: Path, folder: Path) -> dict[str, Exported]:
    """Export models the way the served one was, so that candidates differ in training alone.

    Equal models are exported once, those that are exported already not again.

    Args:
        folder: where what is exported goes.
    """
    done: dict[str, Path] = {}
    jobs = []
    for group in alike(models, "transformers"):
        # a champion is asked as it is served, which is not as we would export it
        done |= {name: onnx for name in group if (onnx := models[name].onnx)}
        missing = [name for name in group if name not in done]
        if served in [done.get(name) for name in group]:
            done |= dict.fromkeys(missing, served)
        elif missing:
            there = folder / f"{missing[-1]}-onnx"
            jobs.append((models[missing[-1]].folder, there))
            log.info("exporting %s to ONNX", missing[-1])
            done |= dict.fromkeys(missing, there)
    export_onnx(jobs, exported_precision(served))
    return {name: replace(model, onnx=done[name]) for name, model in models.items()}


def fitted(model: Model, questions: Sequence[Question], max_new_tokens: int) -> Fitted:
    """Questions as the model's own template renders them, with room for an answer."""
    return prompting.fit(questions, model.tokenizer, model.context - max_new_tokens)


def ask(
    model: Model,
    fitted: Fitted,
    positions: Sequence[int],
    rows: int,
    max_new_tokens: int,
    scored: bool,
    on_done: OnDone,
    probes: Sequence[int],
) -> Answers:
    """Have a model answer.

    Args:
        positions: of the questions among all rows; those of the test come first.
        rows: how many there are.
        scored: whether to ask how likely the expected answers are, too.
        on_done: is called with what has been answered, and what has been scored.
        probes: numbers of the questions that are asked once more, alone, to time the answer.
    """
    start = time.perf_counter()
    ids = model.generate(fitted.prompts, max_new_tokens, on_done)
    seconds = time.perf_counter() - start
    waits = _waits(
        lambda prompt: model.generate([prompt], max_new_tokens, lambda done: None),
        [fitted.prompts[at] for at in probes],
    )
    scores = model.score(fitted.questions, on_done) if scored else []
    test = [at for at, question in enumerate(fitted.questions) if question.row.is_in("test")]
    return Answers(
        texts=_spread([model.decode(answer) for answer in ids], positions, rows),
        likelihoods=_spread(scores, positions if scored else (), rows),
        tokens_in=_mean(len(fitted.prompts[at]) for at in test),
        tokens_out=_mean(len(ids[at]) + 1 for at in test),
        timings={
            "tokens_per_second": sum(len(answer) + 1 for answer in ids) / seconds,
            **_latency(waits),
        },
    )


def probes(questions: Sequence[Question], most: int, seed: int) -> list[int]:
    """Numbers of questions of the test, drawn."""
    test = [at for at, question in enumerate(questions) if question.row.is_in("test")]
    return random.Random(seed).sample(test, min(most, len(test)))


def classify(classifier: Classifier, rows: Sequence[Row], seed: int) -> Answers:
    """Have the classical baseline answer the rows of the test."""
    positions = [at for at, row in enumerate(rows) if row.is_in("test")]
    questions = [rows[at].question for at in positions]
    drawn = random.Random(seed).sample(questions, min(PROBES, len(questions)))
    waits = _waits(lambda question: classifier.answer([question]), drawn)
    return Answers(
        texts=_spread(classifier.answer(questions), positions, len(rows)),
        likelihoods=[None] * len(rows),
        tokens_in=0.0,
        tokens_out=0.0,
        timings=_latency(waits),
    )


def try_prompt(
    model: Model,
    questions: Sequence[Question],
    max_new_tokens: int,
    outcomes: Callable[[Sequence[Answered]], Sequence[float]],
) -> Tried:
    """Answer and score questions of the validation rows."""
    asked = fitted(model, questions, max_new_tokens)
    ids = model.generate(asked.prompts, max_new_tokens, lambda done: None)
    likelihoods = model.score(asked.questions, lambda done: None)
    answered = [
        Answered(question.row.expected, model.decode(answer), score.nll, score.tokens)
        for question, answer, score in zip(questions, ids, likelihoods, strict=True)
    ]
    return Tried(prompting.mean(outcomes(answered)), sum(score.nll for score in likelihoods))


def with_retrieval(
    test: Sequence[Row],
    settings: Retrieval,
    solved: Sequence[Row],
    passages: Sequence[str],
    prompt: str | None,
    tokenizer: PreTrainedTokenizerFast,
) -> list[Question]:
    """Each question with what is like it: solved rows as earlier turns, the best nearest to the
    question, or passages before the question."""
    asked = [row.question for row in test]
    if settings.from_ == "train":
        texts = [row.question for row in solved]
        rows = retrieval.search(asked, texts, solved, settings.rows)
        return [Question(row, None, best[::-1]) for row, best in zip(test, rows, strict=True)]
    known = _without_special_tokens(passages, tokenizer)
    found = retrieval.search(asked, known, known, settings.rows)
    return [Question(row, prompt, passages=best) for row, best in zip(test, found, strict=True)]


def _without_special_tokens(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> list[str]:
    """Passages that can stand in a turn of this model's."""
    turns = [[{"role": "user", "content": passage}] for passage in passages]
    rendered = chat.render_prompts(turns, tokenizer)  # type: ignore[arg-type]
    kept = [
        passage
        for passage, found in zip(passages, rendered, strict=True)
        if not isinstance(found, chat.ChatError)
    ]
    if len(kept) < len(passages):
        log.warning(
            "%d passages of the documents hold special tokens of the model and are not retrieved",
            len(passages) - len(kept),
        )
    return kept


def check_finite(name: str, answers: Answers) -> None:
    """Raise where a model's numbers are none."""
    for position, likelihood in enumerate(answers.likelihoods):
        if likelihood is not None and not math.isfinite(likelihood.nll):
            raise StageError(
                f"{name} gives the expected answer of row {position + 1} a likelihood of "
                f"{likelihood.nll}: its weights hold NaN or infinity; lower the learning rate of "
                f"the stage that made it and run `dvc repro` again"
            )


def served_equals_trained(
    served: Model, trained: Model, prompts: Sequence[Ids], max_new_tokens: int
) -> float:
    """Share of prompts to which an engine gives the same tokens as transformers."""
    given = served.generate(prompts, max_new_tokens, lambda done: None)
    wanted = trained.plainly(prompts, max_new_tokens)
    equal = [left == right for left, right in zip(given, wanted, strict=True)]
    return sum(equal) / len(equal)


def _spread(values: Sequence[T], positions: Sequence[int], rows: int) -> list[T | None]:
    """Values at their positions among all rows, None elsewhere."""
    spread: list[T | None] = [None] * rows
    for at, value in zip(positions, values, strict=True):
        spread[at] = value
    return spread


def _waits(answer: Callable[[T], object], questions: Iterable[T]) -> list[float]:
    """Seconds for each question, asked one after another."""
    waits = []
    for question in questions:
        start = time.perf_counter()
        answer(question)
        waits.append(time.perf_counter() - start)
    return waits


def _latency(waits: Sequence[float]) -> dict[str, float]:
    import numpy

    half, most = numpy.quantile(waits, [0.5, 0.95])
    return {
        "latency_p50_seconds": float(half),
        "latency_p95_seconds": float(most),
        "seconds_per_request": _mean(waits),
        "latency_probes": len(waits),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
