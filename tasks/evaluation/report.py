"""The report: one HTML file that needs nothing else, and the answers that it is computed from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tasks.evaluation import answers, bars, contamination, curves, labels, statistics
from tasks.evaluation.contamination import Contamination
from tasks.evaluation.gates import Verdict
from tasks.evaluation.metrics import LOWER_IS_BETTER, NO_SHARE
from tasks.evaluation.preparation import Preparation
from tasks.evaluation.rows import SPLITS, Row
from tasks.evaluation.statistics import DIGITS, Estimate
from tasks.model.engines import Likelihood

EXAMPLES = 12
TRAITS = {
    "novelty": "share of its pairs of words that no training row has",
    "rarity": "share of the training chats that have another answer",
    "tokens": "tokens",
}
"""What the measures of `format` mean."""
CLASSES_SHOWN = 12
"""Answers and reasons that are shown at once; the others unfold."""
MOST_CHARACTERS = 600
"""Of a prompt or an answer that is shown; predictions.jsonl has all of it."""


def write(
    folder: Path,
    *,
    rows: Sequence[Row],
    texts: Mapping[str, Sequence[str]],
    likelihoods: Mapping[str, Sequence[Likelihood]],
    measured: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    verdict: Verdict,
    contaminated: Mapping[str, Contamination],
    preparation: Preparation,
    losses: Mapping[str, Sequence[curves.Point]],
    confidence: float,
) -> None:
    """Write `index.html` and `predictions.jsonl`; the same arguments give the same bytes.

    Args:
        texts: the answers of each candidate, first to last, in the order of `rows`.
        likelihoods: of the expected answers, in the same order.
        measured: metrics by candidate and split.
        contaminated: what of each split, and of each benchmark, stands in the training data.
        preparation: what the stages before training made of the data.
        losses: the loss curve of each training stage; empty for one that is switched off.
    """
    folder.mkdir(parents=True)
    _write_predictions(folder / "predictions.jsonl", rows, texts, likelihoods)
    test = [at for at, row in enumerate(rows) if row.is_in("test")]
    expected = [rows[at].expected for at in test]
    given = {name: [every[at] for at in test] for name, every in texts.items()}
    final, fields = verdict["candidate"], labels.find(expected)
    before = list(texts)[list(texts).index(final) - 1]
    page = _render(
        verdict=verdict,
        splits=[_split(split, rows, measured, contaminated[split]) for split in SPLITS],
        test_contamination=contaminated["test"],
        too_short=preparation.too_short,
        benchmarks={
            name: (found, found.share(confidence))
            for name, found in contaminated.items()
            if name not in SPLITS
        },
        hard=_hard_test(measured, final, preparation),
        data=_data(preparation),
        lower_is_better=LOWER_IS_BETTER,
        steps=_steps(expected, given),
        by_label=[
            (field, labels.accuracies(field, expected, [given[before], given[final]], confidence))
            for field in fields[:1]
        ],
        before=before,
        confusions=[labels.confusion(field, expected, given[final]) for field in fields],
        plots=[
            (name, curves.plot(name, points) if points else None) for name, points in losses.items()
        ],
        errors=_errors([rows[at] for at in test], given, final),
        confidence=confidence,
        drawing=curves,
        drawing_bars=bars,
        most_bars=CLASSES_SHOWN,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _write_predictions(
    path: Path,
    rows: Sequence[Row],
    texts: Mapping[str, Sequence[str]],
    likelihoods: Mapping[str, Sequence[Likelihood]],
) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for at, row in enumerate(rows):
            record = {
                "id": row.id,
                "source": row.source,
                "split": row.split,
                "hard": row.hard,
                "expected": row.expected,
                "answers": {name: every[at] for name, every in texts.items()},
                "nll": {name: round(every[at].nll, DIGITS) for name, every in likelihoods.items()},
                "tokens": next(iter(likelihoods.values()))[at].tokens,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _split(
    split: str,
    rows: Sequence[Row],
    measured: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    contaminated: Contamination,
) -> dict[str, Any]:
    metrics = list(next(iter(measured.values()))[split])
    return {
        "name": split,
        "contaminated": contaminated,
        "rows": sum(row.is_in(split) for row in rows),
        "metrics": metrics,
        "candidates": {
            name: [(metric, splits[split][metric], metric not in NO_SHARE) for metric in metrics]
            for name, splits in measured.items()
        },
    }


def _hard_test(
    measured: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    final: str,
    preparation: Preparation,
) -> dict[str, Any]:
    """The first and the final candidate on the test and on its hardest rows, side by side, and
    what sets these rows apart."""
    first = next(iter(measured))
    columns = [(name, split) for name in (first, final) for split in ("test", "hard_test")]
    return {
        "candidates": (first, final),
        "columns": columns,
        "scores": [
            (metric, [measured[name][split].get(metric) for name, split in columns])
            for metric in measured[final]["test"]
            if measured[final]["hard_test"] and metric != contamination.METRIC
        ],
        "traits": [
            (TRAITS.get(name, name), test, hardest)
            for name, (test, hardest) in preparation.hardness.items()
        ],
    }


CLASS_SPLITS = ("train", "test", "hard_test")
"""Whose answers are set side by side."""


def _data(preparation: Preparation) -> dict[str, Any]:
    """What the page draws of the data."""
    classes = {
        split: preparation.classes[split] for split in CLASS_SPLITS if split in preparation.classes
    }
    return {
        "splits": bars.table({"rows": preparation.splits}),
        "lengths": bars.histograms(
            {split: bins for split, bins in preparation.lengths.items() if any(bins.values())}
        ),
        "class_splits": list(classes),
        "classes": bars.table(classes),
        "clusters": bars.table({"rows": preparation.clusters}),
        "quality": preparation.quality,
        "few_rows": preparation.few_rows,
        "flows": preparation.flows,
        "rejects": [
            (flow.stage, reason, rows)
            for flow in preparation.flows
            for reason, rows in flow.rejected.items()
        ],
    }


def _steps(
    expected: Sequence[str], given: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, tuple[int, int, float]]]:
    """Each candidate against the one before it, by rows that are answered right."""
    right = {
        name: [answers.matches(text, truth) for text, truth in zip(texts, expected, strict=True)]
        for name, texts in given.items()
    }
    return [
        (left, later, statistics.mcnemar(right[left], right[later]))
        for left, later in pairwise(given)
    ]


def _errors(rows: Sequence[Row], given: Mapping[str, Sequence[str]], final: str) -> dict[str, Any]:
    wrong = [
        at for at, row in enumerate(rows) if not answers.matches(given[final][at], row.expected)
    ]
    first = next(iter(given))
    return {
        "wrong": len(wrong),
        "rows": len(rows),
        "first": first,
        "final": final,
        "examples": [
            {
                "id": rows[at].id,
                "hard": rows[at].hard,
                "prompt": [
                    (turn["role"], _short(turn["content"]))
                    for turn in rows[at].prompt
                    if turn["role"] != "system"
                ],
                "expected": _short(rows[at].expected),
                "first": _short(given[first][at]),
                "final": _short(given[final][at]),
            }
            for at in wrong[:EXAMPLES]
        ],
    }


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


def _render(**context: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(**context) + "\n"
