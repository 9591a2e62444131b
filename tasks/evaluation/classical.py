"""The baseline without a language model: TF-IDF of words with logistic regression, a model a field.

Where answers are classes, it learns in a second what a language model is tuned for in minutes, so
it is what a tuned model has to be held against first.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.evaluation import answers
from tasks.evaluation.metrics import words
from tasks.evaluation.rows import Row

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Inverse strengths of regularisation (scikit-learn's C) of which the best on validation is taken."""
MOST_CLASSES = 200
SHAPE_SHARE = 0.9
"""Of the training answers that have the commonest shape; with fewer, answers are no form to fill in."""
_ITERATIONS = 1000


class LeftOut(Exception):
    """The answers are none that classes can express. The message says why."""


@dataclass(frozen=True)
class Shape:
    """How an answer is put together from its classes."""

    fields: tuple[str, ...]
    """The keys of the JSON object, in their commonest order; empty where the whole answer is a
    label."""
    separators: tuple[str, str]
    """Between and within the pairs of the object, as the data writes them."""

    def labels(self, answer: str) -> tuple[str, ...] | None:
        """The class of each field, as JSON; None for an answer of another shape."""
        structure = answers.parse(answer)
        if not self.fields:
            return (answer.strip(),) if structure is None else None
        if not isinstance(structure, dict) or set(structure) != set(self.fields):
            return None
        return tuple(json.dumps(structure[field], ensure_ascii=False) for field in self.fields)

    def answer(self, labels: Sequence[str]) -> str:
        """The answer that has these classes."""
        if not self.fields:
            return labels[0]
        found = {field: json.loads(label) for field, label in zip(self.fields, labels, strict=True)}
        return json.dumps(found, ensure_ascii=False, separators=self.separators)


@dataclass(frozen=True)
class Classifier:
    """A model for each field; one that has a single class answers without one."""

    shape: Shape
    vectoriser: Any
    models: Sequence[Any]
    strengths: Mapping[str, float]
    """The C that was chosen, by field; the whole answer's is under ""."""
    training_rows: int

    def answer(self, questions: Sequence[str]) -> list[str]:
        """The answer to each question."""
        vectors = self.vectoriser.transform(questions)
        found = [
            [model] * len(questions) if isinstance(model, str) else model.predict(vectors).tolist()
            for model in self.models
        ]
        return [self.shape.answer(labels) for labels in zip(*found, strict=True)]


def train(solved: Sequence[Row], validation: Sequence[Row]) -> Classifier:
    """Learn the classes of the training rows; C is chosen by right answers on the validation rows.

    The same rows give the same classifier, bit for bit, on as many threads.

    Raises:
        LeftOut: when answers are free text, of several shapes, or all the same.
    """
    shape = _shape([row.expected for row in solved])
    known = _known(solved, shape)
    _check_classes(shape, [labels for _, labels in known])

    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(tokenizer=words, token_pattern=None, sublinear_tf=True)
    try:
        vectors = vectoriser.fit_transform([question for question, _ in known])
    except ValueError:
        raise LeftOut("the questions hold no words") from None
    held_out = _known(validation, shape)
    asked = [question for question, _ in held_out]
    held_out_vectors = vectoriser.transform(asked) if asked else None
    models: list[Any] = []
    strengths = {}
    for at, field in enumerate(shape.fields or ("",)):
        labels = [labels[at] for _, labels in known]
        if len(set(labels)) == 1:
            models.append(labels[0])
            continue
        truth = [labels[at] for _, labels in held_out]
        model, strengths[field] = _fitted(vectors, labels, held_out_vectors, truth)
        models.append(model)
    return Classifier(shape, vectoriser, models, strengths, len(known))


def _fitted(vectors: Any, labels: Sequence[str], held_out: Any, truth: Sequence[str]) -> Any:
    """The model that gets most validation rows right, of equals the most regularised, with its C."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    best: tuple[int, Any, float] | None = None
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # validation says if it is good
            # Newton's method needs a tenth of the iterations of lbfgs, whose many small products
            # wait for each other's threads: 0.1 s where that took 7 s on a busy machine
            fresh = LogisticRegression(C=strength, solver="newton-cg", max_iter=_ITERATIONS)
            model = fresh.fit(vectors, labels)
        given = model.predict(held_out).tolist() if truth else []
        right = sum(found == label for found, label in zip(given, truth, strict=True))
        if best is None or right > best[0]:
            best = right, model, strength
    assert best is not None
    return best[1:]


def _shape(expected: Sequence[str]) -> Shape:
    """The commonest shape of the answers.

    Raises:
        LeftOut: when too few have it, or there are no answers.
    """
    structures = [answers.parse(text) for text in expected]
    orders = [tuple(each) if isinstance(each, dict) else None for each in structures]
    if not orders:
        raise LeftOut("there are no training rows")
    sets = [order if order is None else frozenset(order) for order in orders]
    ((commonest, count),) = Counter(sets).most_common(1)
    alike = (order for order, keys in zip(orders, sets, strict=True) if keys == commonest)
    ((fields, _),) = Counter(alike).most_common(1)
    if count < SHAPE_SHARE * len(expected):
        raise LeftOut(f"only {count} of {len(expected)} training answers have one shape")
    if fields is None:
        if any(isinstance(structure, list) for structure in structures):
            raise LeftOut("answers are JSON arrays, which are no class")
        return Shape((), (", ", ": "))
    if not fields:
        raise LeftOut("answers are empty JSON objects")
    compact = sum(
        json.dumps(structure, ensure_ascii=False, separators=(",", ":")) == text.strip()
        for structure, text in zip(structures, expected, strict=True)
    )
    return Shape(fields, (",", ":") if 2 * compact >= len(expected) else (", ", ": "))


def _known(rows: Sequence[Row], shape: Shape) -> list[tuple[str, tuple[str, ...]]]:
    """Questions with their classes, of the rows whose answer has the shape."""
    labelled = ((row.question, shape.labels(row.expected)) for row in rows)
    return [(question, labels) for question, labels in labelled if labels is not None]


def _check_classes(shape: Shape, labels: Sequence[tuple[str, ...]]) -> None:
    """Raise where a field is free text, or there is nothing to tell apart."""
    if not labels:
        raise LeftOut("there are no training rows")
    counts = [len(set(column)) for column in zip(*labels, strict=True)]
    for name, count in zip(shape.fields or ("the answer",), counts, strict=True):
        if count > min(MOST_CLASSES, len(labels) / 2):
            raise LeftOut(
                f"{name} has {count} values in {len(labels)} training rows, which are no classes"
            )
    if all(count == 1 for count in counts):
        raise LeftOut("all training answers are the same, so there is nothing to learn")
