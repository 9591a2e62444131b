"""What candidates are measured by: the right answer, its form, and how likely it was found."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation import answers, contamination, statistics
from tasks.evaluation.statistics import Estimate
from tasks.evaluation.task import Task

LOWER_IS_BETTER = frozenset({"perplexity", contamination.METRIC})
NO_SHARE = frozenset({"perplexity"})
"""All other metrics lie between 0 and 1, but for embedding_similarity, which a cosine of opposite
texts takes below 0."""
PARTS = ("precision", "recall", "f1")
BY_CLASS = tuple(f"{average}_{part}" for average in ("macro", "micro") for part in PARTS)
OF_THE_WHOLE = frozenset({*BY_CLASS, "bleu", "chrf", "perplexity"})
"""Metrics of all rows at once: no row has one, so candidates cannot be paired by them."""
_WORD = re.compile(
    # runs of letters and digits; scripts that write no spaces count each character as a word
    r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
    r"|[^\W_\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)
_EMBEDDED_AT_ONCE = 32


@dataclass(frozen=True)
class Answered:
    """A row that a candidate has answered."""

    expected: str
    answer: str
    nll: float | None
    """Of the expected answer, in nats, summed over its tokens; None for a candidate that gives no
    likelihoods."""
    tokens: int


def measure(
    rows: Sequence[Answered],
    task: Task,
    confidence: float,
    seed: int,
    embedding_model: Path | None = None,
    schema: Mapping[str, Any] | None = None,
) -> dict[str, Estimate]:
    """Every metric of a task that the rows allow; nothing for no rows.

    Args:
        embedding_model: a folder of a sentence encoder in Hugging Face format, for the similarity
            of free text.
        schema: a JSON Schema that structured answers should have.

    Returns:
        classification: `accuracy`; precision, recall and F1 over the expected classes, `macro_` the
        plain mean of the classes and `micro_` over all rows (an answer that is no class counts as
        found nowhere).
        structured: `<field>_accuracy` for each field of the expected JSON objects, over the rows
        that expect it; `json_valid`, the share of answers that are a JSON object or array;
        `schema_valid`; `exact_match`.
        generation: `rouge_l` (F1, mean of the rows; Lin 2004), `bleu` (Papineni 2002) and `chrf`
        (Popovic 2015) of all rows as a share, where sacrebleu prints a hundred times it;
        `embedding_similarity`, the mean cosine; `exact_match`.
        `perplexity` of the expected answers, where there are likelihoods: a diagnosis, no merit.
    """
    if not rows:
        return {}

    def of_rows(metric: str) -> Estimate:
        values = [
            value
            for value in outcomes(metric, rows, embedding_model, schema)
            if not math.isnan(value)
        ]
        return statistics.average(values, confidence, seed)

    measured: dict[str, Estimate] = {}
    if task == "classification":
        measured["accuracy"] = of_rows("accuracy")
        measured |= _by_class(rows, confidence, seed)
    elif task == "structured":
        fields = expected_fields([row.expected for row in rows])
        valid = ["json_valid", *(["schema_valid"] if schema is not None else [])]
        for metric in (*(f"{field}_accuracy" for field in fields), *valid, "exact_match"):
            measured[metric] = of_rows(metric)
    else:
        measured["rouge_l"] = of_rows("rouge_l")
        measured |= _of_the_corpus(rows, confidence, seed)
        if embedding_model is not None:
            measured["embedding_similarity"] = of_rows("embedding_similarity")
        measured["exact_match"] = of_rows("exact_match")
    scored = [(row.nll, row.tokens) for row in rows if row.nll is not None and row.tokens]
    if scored:
        nlls, tokens = zip(*scored, strict=True)
        measured["perplexity"] = statistics.perplexity(nlls, tokens, confidence, seed)
    return measured


def outcomes(
    metric: str,
    rows: Sequence[Answered],
    embedding_model: Path | None = None,
    schema: Mapping[str, Any] | None = None,
) -> list[float]:
    """What a metric gives each row, in their order; NaN for a row that it does not speak of.

    Raises:
        ValueError: for a metric of all rows at once, of which no row has a part, and for one that
            does not exist.
    """
    if metric == "rouge_l":
        return _rouge_l(rows)
    if metric == "embedding_similarity" and embedding_model is not None:
        return _similarities(rows, embedding_model)
    holds = _holds(metric, schema)
    if holds is not None:
        return [float(holds(row)) for row in rows]
    if metric.endswith("_accuracy"):
        field = metric.removesuffix("_accuracy")
        return [
            float(answers.field_matches(row.answer, row.expected, field))
            if field in answers.fields(row.expected)
            else math.nan
            for row in rows
        ]
    if metric in OF_THE_WHOLE:
        raise ValueError(
            f"{metric} is a metric of all rows at once, by which candidates cannot be compared row "
            "by row; compare by accuracy, exact_match, a field's accuracy or rouge_l"
        )
    raise ValueError(f"{metric} is no metric that is known here, or lacks its model or schema")


def _holds(metric: str, schema: Mapping[str, Any] | None) -> Callable[[Answered], bool] | None:
    if metric in ("accuracy", "exact_match"):
        return lambda row: answers.matches(row.answer, row.expected)
    if metric == "json_valid":
        return lambda row: answers.parse(row.answer) is not None
    if metric == "schema_valid" and schema is not None:
        from jsonschema.validators import Draft202012Validator, validator_for

        validator = validator_for(schema, Draft202012Validator)(schema)

        def valid(row: Answered) -> bool:
            structure = answers.parse(row.answer)
            return structure is not None and bool(validator.is_valid(structure))

        return valid
    return None


def expected_fields(expected: Sequence[str]) -> list[str]:
    """The fields of the expected JSON objects, in the order in which they first occur."""
    return list(dict.fromkeys(field for text in expected for field in answers.fields(text)))


def words(text: str) -> list[str]:
    """The words of a text as ROUGE counts them: of English the same as rouge-score's own, which
    would drop every other letter."""
    return _WORD.findall(text.lower())


def _by_class(rows: Sequence[Answered], confidence: float, seed: int) -> dict[str, Estimate]:
    """As scikit-learn's `precision_recall_fscore_support` with the expected classes as labels and
    0 for a division by 0; in sums, so that it can be drawn again."""
    import numpy

    expected = [row.expected.strip() for row in rows]
    classes = {label: at for at, label in enumerate(sorted(set(expected)))}
    truth = numpy.zeros((len(rows), len(classes)))
    found = numpy.zeros_like(truth)
    for at, row in enumerate(rows):
        truth[at, classes[expected[at]]] = 1
        if (label := row.answer.strip()) in classes:
            found[at, classes[label]] = 1
    columns = numpy.hstack([truth * found, found, truth])

    def scores(sums: Any, average: str, part: str) -> Any:
        hits, given, asked = numpy.split(sums, 3, axis=1)
        if average == "micro":
            hits, given, asked = (
                column.sum(axis=1, keepdims=True) for column in (hits, given, asked)
            )
        over, under = {
            "precision": (hits, given),
            "recall": (hits, asked),
            "f1": (2 * hits, given + asked),
        }[part]
        present = asked > 0  # a class that a sample does not hold has no part in its mean
        each = numpy.where(present, over / numpy.maximum(under, 1), 0)
        return each.sum(axis=1) / present.sum(axis=1)

    measures = {
        f"{average}_{part}": functools.partial(scores, average=average, part=part)
        for average in ("macro", "micro")
        for part in PARTS
    }
    return statistics.bootstrap(columns, measures, confidence, seed)


def _rouge_l(rows: Iterable[Answered]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return [float(scorer.score(row.expected, row.answer)["rougeL"].fmeasure) for row in rows]


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _of_the_corpus(rows: Sequence[Answered], confidence: float, seed: int) -> dict[str, Estimate]:
    """BLEU and chrF from the counts that sacrebleu takes of each row."""
    import numpy
    from sacrebleu.metrics import BLEU, CHRF

    given, expected = [row.answer for row in rows], [[row.expected for row in rows]]
    measured: dict[str, Estimate] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        counts = numpy.array(metric._extract_corpus_statistics(given, expected), dtype=float)

        def score(sums: Any, metric: Any = metric) -> Any:
            drawn = ([int(count) for count in sample] for sample in sums)
            return numpy.array(
                [metric._compute_score_from_stats(sample).score / 100 for sample in drawn]
            )

        measured |= statistics.bootstrap(counts, {name: score}, confidence, seed)
    return measured


def _similarities(rows: Sequence[Answered], folder: Path) -> list[float]:
    """Cosine of the mean last hidden states, over the tokens, of answer and expected answer."""
    import torch

    def embedded(texts: Sequence[str]) -> Any:
        tokenizer, model = _encoder(folder)
        vectors = []
        for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
            batch = tokenizer(
                [text or " " for text in texts[start : start + _EMBEDDED_AT_ONCE]],
                padding=True,
                truncation=True,
                max_length=_longest(model),
                return_tensors="pt",
            )
            batch.pop("token_type_ids", None)
            with torch.inference_mode():
                states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            vectors.append((states * mask).sum(1) / mask.sum(1).clamp(min=1))
        return torch.nn.functional.normalize(torch.cat(vectors), dim=1)

    expected, given = (
        embedded([getattr(row, name) for row in rows]) for name in ("expected", "answer")
    )
    return [round(float(cosine), statistics.DIGITS) for cosine in (expected * given).sum(1)]


@functools.lru_cache(maxsize=1)
def _encoder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return tokenizer, model.float().eval()


def _longest(model: Any) -> int:
    return min(512, int(getattr(model.config, "max_position_embeddings", 512)))
