"""Score every candidate on the same rows, compare the last with the others, hold it to the gates."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.evaluation import (
    candidates,
    conclusions,
    contamination,
    contest,
    gates,
    harness,
    preparation,
    scoring,
)
from tasks.evaluation import curves as loss_curves
from tasks.evaluation import report as reports
from tasks.evaluation import rows as test_rows
from tasks.evaluation.candidates import Answers, Exported
from tasks.evaluation.contest import BASE, CHAMPION, FINAL, Contest, Material
from tasks.evaluation.scoring import Scoring
from tasks.lineage import champion, provenance, stage, tracking
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import Metrics, Out
from tasks.params import Compute, Evaluate, Validate

_WHY_APART = "; see merge.onnx_precision, and merge.max_kl for how far apart they may be"


def run(
    base: Path,
    cpt: Path,
    sft: Path,
    merged: Path,
    onnx: Path,
    data: Path,
    corpus: Path,
    ingest_metrics: Path,
    validate_metrics: Path,
    format_metrics: Path,
    curves: Path,
    records: Path,
    report: Out,
    verdict: Out,
    evaluate: Evaluate,
    validate: Validate,
    compute: Compute,
) -> Metrics:
    """Ask every candidate the same questions; write report, predictions, slices and verdict."""
    seed(compute)
    quiet()
    rows = test_rows.read(data, evaluate.regression_rows)
    contaminated = contamination.read(data, test_rows.counts(data))
    counted = {"ingest": ingest_metrics, "validate": validate_metrics, "format": format_metrics}
    made = preparation.read(data, counted)
    losses = loss_curves.read(curves)
    makers = provenance.behind([merged], provenance.read_records(records))
    by = Scoring.of(rows, evaluate, validate.answer_schema, compute.seed)
    log.info("task: %s, compared by %s", by.task, by.primary)
    tracking.log_input("test", data / "test.jsonl", "evaluation")

    with _workshop(report) as folder:
        models = _models(base, cpt, sft, merged, onnx, data, evaluate, folder)
        held = contest.hold(models, rows, _material(data, corpus), by, evaluate, compute.threads)
        numbers = scoring.measured(rows, held.answers, contaminated, by)
        known = harness.run(
            {BASE: base, FINAL: merged},
            evaluate.lm_eval.tasks,
            evaluate.lm_eval.limit,
            compute.seed,
        )
        document = scoring.document(rows, held.answers, numbers, FINAL, held.left_out, known, by)
        decided = gates.judge(document, evaluate.gates, evaluate.champion)
        verdict.write_text(json.dumps(decided, indent=2) + "\n", encoding="utf-8")
        write = functools.partial(
            reports.write,
            rows=rows,
            texts={name: given.texts for name, given in held.answers.items()},
            likelihoods={name: given.likelihoods for name, given in held.answers.items()},
            document=document,
            slices=scoring.sliced(rows, held.answers, held.lengths, document, by),
            verdict=decided,
            contaminated=contaminated,
            preparation=made,
            losses=losses,
            choices=held.choices,
            records=makers,
            confidence=evaluate.confidence,
        )
        write(report)
        costs = _costs(held.answers, evaluate)
        write(folder / "report", costs=costs)
        _track(costs, held, folder / "report")
    _tell(document, decided)
    return document


@contextlib.contextmanager
def _workshop(report: Path) -> Iterator[Path]:
    """A folder for what only this stage needs, on the disk that holds the other models."""
    folder = report.with_name(".candidates.partial")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _models(
    base: Path,
    cpt: Path,
    sft: Path,
    merged: Path,
    onnx: Path,
    data: Path,
    evaluate: Evaluate,
    folder: Path,
) -> dict[str, Exported]:
    """A complete model for each candidate that is one, exported where the engine asks for that."""
    from tasks.model import merging

    models = {BASE: Exported(base, None)}
    if evaluate.champion:
        found = champion.bring(evaluate.champion)
        models[CHAMPION] = Exported(found.merged, found.onnx)
    log.info("making a complete model of %s and %s", cpt, sft)
    prompts, _ = merging.fixed_conversations(data, cpt)
    merging.merge(merging.load_unmerged(cpt, sft), cpt, sft, folder / "sft", prompts)
    models |= {"cpt": Exported(cpt, None), "sft": Exported(folder / "sft", None)}
    if evaluate.engine in candidates.EXPORTED_ENGINES:
        return candidates.export({**models, FINAL: Exported(merged, onnx)}, onnx, folder)
    exported = (onnx / "genai_config.json").is_file()
    return {**models, FINAL: Exported(merged, onnx if exported else None)}


def _material(data: Path, corpus: Path) -> Material:
    return Material(
        solved=test_rows.read_solved(data, "train"),
        validation=test_rows.read_solved(data, "validation"),
        passages=test_rows.read_passages(corpus),
    )


def _costs(answers: Mapping[str, Answers], evaluate: Evaluate) -> dict[str, dict[str, float]]:
    """Clock readings by candidate; with a price of the machine, what 1,000 requests cost that come
    one after another."""
    costs = {name: dict(given.timings) for name, given in answers.items()}
    if evaluate.cost_per_hour is not None:
        for told in costs.values():
            hours = 1000 * told["seconds_per_request"] / 3600
            told["cost_per_1000_requests"] = hours * evaluate.cost_per_hour
    return costs


def _track(costs: Mapping[str, Mapping[str, float]], held: Contest, report: Path) -> None:
    """What goes to MLflow alone, since it differs from run to run (law 5)."""
    for name, told in costs.items():
        tracking.log_metrics({f"{name}/{key}": value for key, value in told.items()})
    tracking.log_artifact(report, "report")
    for engine, share in held.served_equals_trained.items():
        tracking.log_metrics({f"served_equals_trained/{engine}": share})
        if share < 1:
            log.warning(
                "the engine %s answers only %.0f%% of %d prompts as models/merged does with "
                "transformers, token by token%s",
                engine,
                100 * share,
                held.compared,
                _WHY_APART if engine in candidates.EXPORTED_ENGINES else "",
            )
        else:
            log.info("the engine %s answers as the model was trained, token by token", engine)


def _tell(document: Mapping[str, Any], verdict: gates.Verdict) -> None:
    """A table of the test on the terminal, then the comparisons and the gates."""
    by_candidate = document["candidates"]
    metrics = list(by_candidate[FINAL]["test"])
    width = max(map(len, metrics))
    names = list(by_candidate)
    log.info("%s", " " * width + "".join(f"{name:>15}" for name in names))
    for metric in metrics:
        found = (by_candidate[name]["test"].get(metric, {}).get("value") for name in names)
        shown = ("-" if value is None else f"{value:.3f}" for value in found)
        log.info("%s", f"{metric:<{width}}" + "".join(f"{value:>15}" for value in shown))
    for compared in filter(None, document["comparisons"].values()):
        log.info("%s against %s: %s", compared["left"], compared["right"], compared["says"])
    for gate in verdict["gates"]:
        tell = log.info if gate["passed"] else log.warning
        empty = "" if gate.get("could_fail", True) else f" {conclusions.CANNOT_FAIL}"
        tell("gate %s %s%s: %s", gate["gate"], gate["metric"], empty, gate["why"])
    log.info("verdict: %s", verdict["verdict"])


if __name__ == "__main__":
    stage.main(run)
