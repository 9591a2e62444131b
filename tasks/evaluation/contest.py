"""All candidates, asked the same rows, each in its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.evaluation import candidates, classical, prompting
from tasks.evaluation import rows as test_rows
from tasks.evaluation.candidates import Answers, Exported, Model
from tasks.evaluation.prompting import Fitted, Question
from tasks.evaluation.rows import Row
from tasks.evaluation.scoring import Scoring
from tasks.lineage.console import log, progress
from tasks.params import Evaluate

if TYPE_CHECKING:
    from tasks.evaluation.report import Choice

NAMES = (
    "base",
    "base_few_shot",
    "base_retrieval",
    "classical",
    "champion",
    "cpt",
    "sft",
    "dpo",
)
"""In the order of evaluate.metrics.json."""
FINAL = NAMES[-1]
BASE, FEW_SHOT, RETRIEVAL, CLASSICAL, CHAMPION = NAMES[:5]
PLAIN = "asked as the data asks"
SERVING = "genai"
"""The engine that serves a model that is exported."""


@dataclass(frozen=True)
class Material:
    """What a method may learn from that is to answer the test."""

    solved: Sequence[Row]
    validation: Sequence[Row]
    passages: Sequence[str]
    """Of the documents."""


@dataclass
class Contest:
    """What came of it."""

    answers: dict[str, Answers] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    """How each candidate answers."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Candidates that params.yaml asks for and that cannot be, with the reason."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of the prompt of each row, as the final candidate is asked."""
    served_equals_trained: dict[str, float] = field(default_factory=dict)
    """By engine: the share of prompts to which it answers as transformers does, token by token."""
    compared: int = 0
    """How many prompts those are."""


@dataclass(frozen=True)
class _Ask:
    """Questions to a model."""

    choices: dict[str, Choice]
    """The candidates whose answers these are, and how they say that they are asked."""
    questions: Sequence[Question]
    positions: Sequence[int]
    """Of the questions, among all rows."""
    scored: bool = False
    """Whether to ask how likely the expected answers are, too."""


def hold(
    models: Mapping[str, Exported],
    rows: Sequence[Row],
    material: Material,
    scoring: Scoring,
    evaluate: Evaluate,
    threads: int,
) -> Contest:
    """Ask every candidate; models of equal content are asked once, each as it is exported.

    Args:
        models: by candidate: base, cpt, sft, dpo, and the champion if there is one. The final one has
            its export, if there is any, whatever the engine.

    Raises:
        StageError: when a model's numbers are none, or a question does not fit into its context.
    """
    contest = Contest()
    if evaluate.classical:
        _classical(contest, rows, material, scoring.seed)
    for group in candidates.alike(models, evaluate.engine):
        if len(group) > 1:
            log.info("%s are one model, which is asked once", " and ".join(group))
        model = Model(models[group[-1]], evaluate.engine, threads)
        asks = _asks(contest, group, model, rows, material, scoring, evaluate)
        total = sum(len(ask.positions) * (1 + ask.scored) for ask in asks)
        done = 0
        with progress("answering", total=total) as advance:
            for ask in asks:
                name = next(reversed(ask.choices))

                def on_done(count: int, name: str = name) -> None:
                    nonlocal done
                    done += count
                    advance(done, name)

                fitted = candidates.fitted(model, ask.questions, evaluate.max_new_tokens)
                if fitted.left_out:
                    log.info("%s: %d parts of prompts do not fit", name, fitted.left_out)
                given = candidates.ask(
                    model,
                    fitted,
                    ask.positions,
                    len(rows),
                    evaluate.max_new_tokens,
                    ask.scored,
                    on_done,
                    candidates.probes(fitted.questions, _probes(ask), scoring.seed),
                )
                candidates.check_finite(name, given)
                _note(contest, ask, fitted, given)
                if FINAL in ask.choices:
                    contest.lengths = [len(prompt) for prompt in fitted.prompts]
                    _compare_served(contest, models[FINAL], model, fitted, evaluate, threads)
    contest.answers = {name: contest.answers[name] for name in NAMES if name in contest.answers}
    return contest


def _probes(ask: _Ask) -> int:
    return candidates.PROBES_OF_FINAL if FINAL in ask.choices else candidates.PROBES


def _asks(
    contest: Contest,
    group: Sequence[str],
    model: Model,
    rows: Sequence[Row],
    material: Material,
    scoring: Scoring,
    evaluate: Evaluate,
) -> list[_Ask]:
    """What to ask a model, in all the ways in which candidates ask it."""
    every = range(len(rows))
    plain: dict[str, Choice] = {name: {"how": PLAIN, "prompt": None} for name in group}
    asks = []
    if BASE in group:
        prompt, tried = _prompt(model, material, scoring, evaluate)
        plain[BASE] = {**plain[BASE], "tried": tried}
        if prompt is not None:
            # it speaks of the test's questions, not of general ones
            asked = [Question(row, prompt if row.is_in("test") else None) for row in rows]
            how = "asked with the instruction of evaluate.prompts that does best on validation rows"
            del plain[BASE]
            asks.append(
                _Ask({BASE: {"how": how, "prompt": prompt, "tried": tried}}, asked, every, True)
            )
        test = test_rows.where(rows, "test")
        if evaluate.few_shot:
            asks += _few_shot(contest, rows, test, material, scoring, evaluate)
        if evaluate.retrieval.rows:
            asks += _retrieval(contest, rows, test, material, prompt, model, evaluate)
    if plain:
        asks.insert(0, _Ask(plain, [Question(row) for row in rows], every, scored=True))
    return asks


def _prompt(
    model: Model, material: Material, scoring: Scoring, evaluate: Evaluate
) -> tuple[str | None, dict[str, float]]:
    def attempt(questions: Sequence[Question]) -> prompting.Tried:
        return candidates.try_prompt(model, questions, evaluate.max_new_tokens, scoring.outcomes)

    return prompting.best(evaluate.prompts, material.validation, scoring.seed, attempt)


def _few_shot(
    contest: Contest,
    rows: Sequence[Row],
    test: Sequence[int],
    material: Material,
    scoring: Scoring,
    evaluate: Evaluate,
) -> Iterator[_Ask]:
    shown = prompting.examples(material.solved, evaluate.few_shot, scoring.seed)
    if not shown:
        _leave_out(contest, FEW_SHOT, "there are no training rows to show")
        return
    choice: Choice = {
        "how": "the same solved training rows before each question, of different answers",
        "examples": len(shown),
    }
    yield _Ask({FEW_SHOT: choice}, [Question(rows[at], examples=shown) for at in test], test)


def _retrieval(
    contest: Contest,
    rows: Sequence[Row],
    test: Sequence[int],
    material: Material,
    prompt: str | None,
    model: Model,
    evaluate: Evaluate,
) -> Iterator[_Ask]:
    settings = evaluate.retrieval
    from_rows = settings.from_ == "train"
    if not (material.solved if from_rows else material.passages):
        missing = "training rows" if from_rows else "passages of documents"
        _leave_out(contest, RETRIEVAL, f"there are no {missing} to retrieve")
        return
    choice: Choice = {
        "how": "passages of the documents before each question, found by BM25",
        "prompt": prompt,
    }
    if from_rows:
        choice = {
            "how": "the solved training rows most like the question before it, found by BM25",
            "examples": settings.rows,
            "training_rows": len(material.solved),
        }
    asked = candidates.with_retrieval(
        [rows[at] for at in test],
        settings,
        material.solved,
        material.passages,
        prompt,
        model.tokenizer,
    )
    yield _Ask({RETRIEVAL: choice}, asked, test)


def _classical(contest: Contest, rows: Sequence[Row], material: Material, seed: int) -> None:
    try:
        classifier = classical.train(material.solved, material.validation)
    except classical.LeftOut as error:
        _leave_out(contest, CLASSICAL, str(error))
        return
    contest.answers[CLASSICAL] = candidates.classify(classifier, rows, seed)
    chosen = ", ".join(
        f"{strength:g} for {field}" if field else f"{strength:g}"
        for field, strength in classifier.strengths.items()
    )
    contest.choices[CLASSICAL] = {
        "how": f"TF-IDF of words and logistic regression, with C {chosen} by the validation rows",
        "training_rows": classifier.training_rows,
    }


def _leave_out(contest: Contest, name: str, why: str) -> None:
    log.info("%s is left out: %s", name, why)
    contest.left_out[name] = why


def _note(contest: Contest, ask: _Ask, fitted: Fitted, given: Answers) -> None:
    for name, choice in ask.choices.items():
        contest.answers[name] = given
        told: Choice = {
            **choice,
            "tokens_in": round(given.tokens_in, 2),
            "tokens_out": round(given.tokens_out, 2),
        }
        if fitted.left_out:
            told["how"] += f"; {fitted.left_out} parts that do not fit into the context left out"
        contest.choices[name] = told


def _compare_served(
    contest: Contest,
    final: Exported,
    model: Model,
    fitted: Fitted,
    evaluate: Evaluate,
    threads: int,
) -> None:
    """Hold the engine that answers, and the one that serves what is exported, to transformers."""
    prompts = fitted.prompts[: candidates.COMPARED]
    contest.compared = len(prompts)
    engines: dict[str, Model] = {}
    if evaluate.engine != "transformers":
        engines[evaluate.engine] = model
    if final.onnx and evaluate.engine not in candidates.EXPORTED_ENGINES:
        engines[SERVING] = Model(final, SERVING, threads)
    for engine, served in engines.items():
        contest.served_equals_trained[engine] = candidates.served_equals_trained(
            served, model, prompts, evaluate.max_new_tokens
        )
