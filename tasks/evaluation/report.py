"""The report: one HTML file that needs nothing else, a model card, and the answers that both are
computed from."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from tasks.evaluation import (
    answers,
    bars,
    card,
    conclusions,
    curves,
    examples,
    forest,
    labels,
    result_table,
    statistics,
)
from tasks.evaluation.comparisons import SIMPLER
from tasks.evaluation.contamination import Contamination
from tasks.evaluation.gates import Verdict
from tasks.evaluation.metrics import LOWER_IS_BETTER
from tasks.evaluation.preparation import Preparation
from tasks.evaluation.rows import SPLITS, Row
from tasks.evaluation.statistics import DIGITS, Estimate
from tasks.lineage import drawing
from tasks.lineage import graph as lineage
from tasks.model.engines import Likelihood

TRAITS = {
    "novelty": "share of its pairs of words that no training row has",
    "rarity": "share of the training chats that have another answer",
    "tokens": "tokens",
}
"""What the measures of `format` mean."""
COSTS = {
    "latency_p50_seconds": "seconds for half of the answers",
    "latency_p95_seconds": "seconds for 95% of the answers",
    "tokens_per_second": "tokens a second",
    "cost_per_1000_requests": "cost of 1,000 requests",
}
"""What the clock readings mean, in the order in which they are shown."""
FORGOTTEN = {
    "following": "answers to general instructions",
    "form": "answers that at least look as the expected one does",
}
"""What is measured of general rows, besides perplexity."""
TRAINED = ("base", "cpt", "sft", "dpo")
"""The stages of training, first to last."""
CLASSES_SHOWN = 12
"""Answers, slices and reasons that are shown at once; the others unfold."""
REGRESSION_EXAMPLES = 3
WIDEST_CONFUSION = 20
"""Classes up to which the whole matrix is shown at once."""


class Choice(TypedDict, total=False):
    """How a candidate answers, and what that costs for each request."""

    how: str
    """One plain sentence."""
    prompt: str | None
    """The instruction that was used; None for that of the data."""
    tried: dict[str, float]
    """What was tried on the validation rows, with its score."""
    examples: int
    """Solved rows before each question."""
    training_rows: int
    """Rows that it learned from."""
    tokens_in: float
    tokens_out: float
    """A request, on average."""


def write(
    folder: Path,
    *,
    rows: Sequence[Row],
    texts: Mapping[str, Sequence[str | None]],
    likelihoods: Mapping[str, Sequence[Likelihood | None]],
    document: Mapping[str, Any],
    slices: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    contaminated: Mapping[str, Contamination],
    preparation: Preparation,
    losses: Mapping[str, curves.Losses],
    choices: Mapping[str, Choice],
    records: Sequence[Mapping[str, Any]],
    confidence: float,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Write the folder; the same arguments give the same bytes.

    `index.html` is the report, `model_card.md` the model card (DVC ignores a README.md),
    `predictions.jsonl` every answer, `slices.json` every slice, `plots/confusion.csv` what
    `dvc plots show` draws.

    Args:
        texts: the answers of each candidate in the order of `rows`; None where it was not asked.
        likelihoods: of the expected answers, in the same order; not every candidate has them.
        document: what becomes models/evaluate.metrics.json.
        contaminated: what of each split, and of each benchmark, stands in the training data.
        preparation: what the stages before training made of the data.
        losses: of each training stage; empty for one that is switched off.
        choices: how each candidate answers.
        records: of the stages that made the model, each behind those that it reads from.
        costs: clock readings by candidate. They differ from run to run, so they are only given for
            the copy that goes to MLflow, never for an output of the stage.
    """
    (folder / "plots").mkdir(parents=True)
    _write_predictions(folder / "predictions.jsonl", rows, texts, likelihoods)
    _write_json(folder / "slices.json", list(slices))
    test = [at for at, row in enumerate(rows) if row.is_in("test")]
    expected = [rows[at].expected for at in test]
    given = {
        name: answered
        for name, every in texts.items()
        if None not in (answered := [every[at] for at in test])
    }
    asked = {name: [text or "" for text in every] for name, every in given.items()}
    final, fields = document["final"], labels.find(expected)
    _write_confusion(folder / "plots" / "confusion.csv", fields[:1], expected, asked[final])
    splits = result_table.splits(document, verdict["gates"], rows, contaminated)
    page = _render(
        "report.html.j2",
        verdict=verdict,
        document=document,
        confidence=confidence,
        headline=conclusions.headline(document, verdict, confidence),
        reservations=conclusions.reservations(document, verdict, confidence),
        splits=splits,
        meanings=result_table.meanings(splits),
        too_short=preparation.too_short,
        benchmarks={
            name: (found, found.share(confidence))
            for name, found in contaminated.items()
            if name not in SPLITS
        },
        simpler=_simpler(document, choices, preparation.splits.get("train")),
        comparisons=_comparisons(document),
        steps=_steps(expected, asked),
        forest=forest.forest(slices),
        slice_summary=conclusions.sliced(slices),
        slice_other=slices[0]["other_name"] if slices else None,
        classes=_classes(document, fields, expected, asked, confidence),
        traits=[(TRAITS.get(name, name), *means) for name, means in preparation.hardness.items()],
        forgetting=_forgetting(document, rows, texts),
        errors=_errors(document, [rows[at] for at in test], asked),
        data=_data(preparation),
        plots=[
            (name, curves.plot(name, found) if found.training else None)
            for name, found in losses.items()
        ],
        costs=_costs(costs),
        picture=_picture(records),
        origins=_origins(records),
        lower_is_better=LOWER_IS_BETTER,
        drawing=curves,
        drawing_bars=bars,
        most=CLASSES_SHOWN,
        widest_confusion=WIDEST_CONFUSION,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    described = card.render(
        document=document,
        verdict=verdict,
        splits=splits,
        preparation=preparation,
        records=records,
        confidence=confidence,
    )
    (folder / "model_card.md").write_text(described, encoding="utf-8")


def _comparisons(document: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """With whom, on which rows, and what came of it."""
    names = {"simpler": "the best simpler method", "champion": "the champion"}
    found = [(names[kind], "", made) for kind, made in document["comparisons"].items()]
    by_source = document.get("champion_by_source", {}).items()
    found += [(names["champion"], f" from {source}", made) for source, made in by_source]
    return [line for line in found if line[2]]


def _write_predictions(
    path: Path,
    rows: Sequence[Row],
    texts: Mapping[str, Sequence[str | None]],
    likelihoods: Mapping[str, Sequence[Likelihood | None]],
) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for at, row in enumerate(rows):
            scored = {name: every[at] for name, every in likelihoods.items()}
            found = {name: score for name, score in scored.items() if score is not None}
            record = {
                "id": row.id,
                "source": row.source,
                "split": row.split,
                "hard": row.hard,
                "prompt": row.prompt,
                "expected": row.expected,
                "answers": {
                    name: said for name, every in texts.items() if (said := every[at]) is not None
                },
                "nll": {name: round(score.nll, DIGITS) for name, score in found.items()},
                "tokens": next((score.tokens for score in found.values()), None),
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_confusion(
    path: Path, fields: Sequence[labels.Field], expected: Sequence[str], given: Sequence[str]
) -> None:
    """The classes of the first field, expected and answered; only the header where it has none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["actual", "predicted"])
        for field in fields:
            table.writerows(labels.pairs(field, expected, given))


def _simpler(
    document: Mapping[str, Any], choices: Mapping[str, Choice], training_rows: int | None
) -> list[tuple[str, Estimate, dict[str, Any]]]:
    """The simpler methods and the final candidate, with their primary metric on the test and how
    they answer; None for what is not known of it."""
    unknown = dict.fromkeys(Choice.__annotations__)
    known = {document["final"]: {"training_rows": training_rows}}
    return [
        (
            name,
            measured["test"][document["primary"]],
            {**unknown, **known.get(name, {}), **choices.get(name, {})},
        )
        for name, measured in document["candidates"].items()
        if name in (*SIMPLER, document["final"]) and document["primary"] in measured["test"]
    ]


def _steps(
    expected: Sequence[str], given: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, tuple[int, int, float]]]:
    """Each stage of training against the one before it, by rows that are answered right; nothing
    where no stage answers any row exactly right, as with free text."""
    right = {
        name: [answers.matches(text, truth) for text, truth in zip(texts, expected, strict=True)]
        for name, texts in given.items()
        if name in TRAINED
    }
    if not any(map(any, right.values())):
        return []
    return [
        (left, later, statistics.mcnemar(right[left], right[later]))
        for left, later in pairwise(right)
    ]


def _rival(document: Mapping[str, Any], given: Mapping[str, Sequence[str]]) -> str | None:
    """The best simpler method; without one, the candidate before the final one."""
    if (found := document["comparisons"]["simpler"]) and found["right"] in given:
        return str(found["right"])
    others = [name for name in given if name != document["final"]]
    return others[-1] if others else None


def _classes(
    document: Mapping[str, Any],
    fields: Sequence[labels.Field],
    expected: Sequence[str],
    given: Mapping[str, Sequence[str]],
    confidence: float,
) -> list[tuple[Any, ...]]:
    """For each field that is a class: the candidates that are set side by side (the final one and
    its best rival), their accuracy by class, and what the final one takes for what, with its
    commonest mistakes as (expected, answered, rows)."""
    final = document["final"]
    shown = list(dict.fromkeys([_rival(document, given) or final, final]))
    found = []
    for field in fields:
        matrix = labels.confusion(field, expected, given[final])
        mistakes = [
            (label, column, count)
            for label, counts in matrix.rows
            for column, count in zip(matrix.columns, counts, strict=True)
            if count and column != label
        ]
        mistakes = sorted(mistakes, key=lambda one: -one[2])[:CLASSES_SHOWN]
        every = [given[name] for name in shown]
        accuracies = labels.accuracies(field, expected, every, confidence)
        found.append((field, shown, accuracies, matrix, mistakes))
    return found


def _forgetting(
    document: Mapping[str, Any], rows: Sequence[Row], texts: Mapping[str, Sequence[str | None]]
) -> dict[str, Any] | None:
    """What is measured on general rows: by metric its meaning, the base model's value, the final
    one's, and the change (of perplexity a factor); and the first rows with the answers to them."""
    found, final = document["forgetting"], document["final"]
    if found is None:
        return None

    def perplexity(name: str) -> Estimate | None:
        regression = document["candidates"].get(name, {}).get("regression", {})
        return regression.get("perplexity")  # type: ignore[no-any-return]

    shown = {name: texts[name] for name in ("base", final) if name in texts}
    general = [at for at, row in enumerate(rows) if row.is_in("regression")]
    return {
        "rows": found["rows"],
        "ratio": (perplexity("base"), perplexity(final), found["perplexity_ratio"]),
        "measured": [(FORGOTTEN[kind], found[kind]) for kind in FORGOTTEN if found.get(kind)],
        "examples": [examples.example(rows[at], at, shown) for at in general[:REGRESSION_EXAMPLES]],
    }


def _errors(
    document: Mapping[str, Any], rows: Sequence[Row], given: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    final = document["final"]
    wrong = examples.wrong(rows, given[final])
    shown = dict.fromkeys([final, "base", _rival(document, given) or final])
    texts = {name: given[name] for name in shown if name in given}
    return {
        "wrong": len(wrong),
        "rows": len(rows),
        "examples": [examples.example(rows[at], at, texts) for at in wrong[: examples.MOST]],
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


def _costs(costs: Mapping[str, Mapping[str, float]] | None) -> dict[str, Any] | None:
    """A table of clock readings, a row a candidate."""
    if costs is None:
        return None
    measured = dict.fromkeys(name for of in costs.values() for name in of)
    known = [name for name in COSTS if name in measured]
    names = [*known, *(name for name in measured if name not in COSTS)]
    return {
        "columns": [COSTS.get(name, name.replace("_", " ")) for name in names],
        "rows": [(name, [of.get(column) for column in names]) for name, of in costs.items()],
    }


def _picture(records: Sequence[Mapping[str, Any]]) -> str:
    """The stages that made the model, as SVG."""
    made = _graph(records)
    read = {path for record in records for path in record["inputs"]}
    last = set(records[-1]["outputs"]) if records else set()
    nodes = [
        node
        for node in made.nodes
        if not isinstance(node, lineage.Artifact) or node.path in read | last
    ]
    return drawing.svg(made, nodes)


def _origins(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], list[str]]]:
    """The same in words: a stage, what it read and what it wrote, code left out."""
    written = {
        path: output["md5"] for record in records for path, output in record["outputs"].items()
    }
    found = []
    for record in records:
        read = [
            lineage.Artifact(path, md5, written.get(path)) for path, md5 in record["inputs"].items()
        ]
        outputs = [
            lineage.Artifact(path, output["md5"], output["sha256"])
            for path, output in record["outputs"].items()
        ]
        kept = [str(artifact) for artifact in read if not lineage.is_code(artifact)]
        found.append((record["stage"], kept, list(map(str, outputs))))
    return found


def _graph(records: Sequence[Mapping[str, Any]]) -> lineage.Graph:
    graph = lineage.Graph()
    graph.add(None, records)
    return graph


def _render(template: str, **context: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        number=conclusions.number,
        signed=conclusions.signed,
        gate_name=conclusions.gate_name,
        gate_result=conclusions.result,
        gates_held=conclusions.gates_held,
        p_value=conclusions.p_value,
        methods=conclusions.METHODS,
    )
    return environment.get_template(template).render(**context) + "\n"
