"""Score every candidate on the same rows and judge the last of them against the gates."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.evaluation import candidates, contamination, gates, preparation
from tasks.evaluation import curves as loss_curves
from tasks.evaluation import report as reports
from tasks.evaluation import rows as test_rows
from tasks.evaluation.candidates import Answers, Prepared
from tasks.evaluation.contamination import Contamination
from tasks.evaluation.metrics import Answered, measure
from tasks.evaluation.rows import SPLITS, Row
from tasks.evaluation.statistics import Estimate
from tasks.lineage import stage, tracking
from tasks.lineage.compute import seed
from tasks.lineage.console import log, progress, quiet
from tasks.lineage.stage import Metrics, Out, StageError
from tasks.model import chat
from tasks.model.engines import Ids
from tasks.params import Compute, Evaluate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FINAL = "dpo"
COMPARED = 8
"""Prompts on which the exported model is compared with the trained one."""
Measured = dict[str, dict[str, dict[str, Estimate]]]
"""By candidate, split and metric."""


def run(
    base: Path,
    cpt: Path,
    sft: Path,
    merged: Path,
    onnx: Path,
    data: Path,
    ingest_metrics: Path,
    validate_metrics: Path,
    format_metrics: Path,
    curves: Path,
    report: Out,
    verdict: Out,
    evaluate: Evaluate,
    compute: Compute,
) -> Metrics:
    """Ask base, cpt, sft and dpo the same questions; write report, predictions and verdict."""
    seed(compute)
    quiet()
    rows = test_rows.read(data, evaluate.regression_rows)
    contaminated = contamination.read(data, test_rows.counts(data))
    counted = {"ingest": ingest_metrics, "validate": validate_metrics, "format": format_metrics}
    made = preparation.read(data, counted)
    losses = loss_curves.read(curves)
    tokenizer = chat.load_tokenizer(merged)  # no stage changes it
    prepared = candidates.prepare(rows, tokenizer)
    tracking.log_input("test", data / "test.jsonl", "evaluation")

    with _workshop(report) as folder:
        models = {"base": base, "cpt": cpt, "sft": folder / "sft", FINAL: merged}
        _complete(base=cpt, adapter=sft, out=models["sft"])
        served = onnx if (onnx / "genai_config.json").is_file() else None
        answers = _answers(models, served, prepared, tokenizer, evaluate, compute, folder)
    if served:
        _compare_served(merged, answers[FINAL].probes, prepared, evaluate, compute)

    measured = {
        name: _measure(rows, given, contaminated, evaluate, compute)
        for name, given in answers.items()
    }
    decided = gates.judge(FINAL, "test", measured[FINAL]["test"], evaluate.gates)
    verdict.write_text(json.dumps(decided, indent=2) + "\n", encoding="utf-8")
    reports.write(
        report,
        rows=rows,
        texts={name: given.texts for name, given in answers.items()},
        likelihoods={name: given.likelihoods for name, given in answers.items()},
        measured=measured,
        verdict=decided,
        contaminated=contaminated,
        preparation=made,
        losses=losses,
        confidence=evaluate.confidence,
    )
    tracking.log_artifact(report, "report")
    _tell(measured, decided)
    return measured


@contextlib.contextmanager
def _workshop(report: Path) -> Iterator[Path]:
    """A folder for models that only this stage needs, on the disk that holds the other models."""
    folder = report.with_name(".candidates.partial")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _complete(base: Path, adapter: Path, out: Path) -> None:
    from tasks.model.merging import merge

    log.info("making a complete model of %s and %s", base, adapter)
    merge(base=base, adapter=adapter, out=out)


def _answers(
    models: Mapping[str, Path],
    served: Path | None,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerFast,
    evaluate: Evaluate,
    compute: Compute,
    folder: Path,
) -> dict[str, Answers]:
    """The answers of every candidate; models of equal content are asked once."""
    groups = {group[-1]: group for group in candidates.alike(models)}
    for asked, group in groups.items():
        for name in group[:-1]:
            log.info("%s is the same model as %s, whose answers count for it", name, asked)
    exported: dict[str, Path] = {}
    if served:
        others = {name: models[name] for name in groups if name != FINAL}
        log.info("exporting %s to ONNX", ", ".join(others) or "nothing more")
        exported = {**candidates.export(others, served, folder), FINAL: served}

    answers: dict[str, Answers] = {}
    done = 0
    with progress("answering", total=2 * len(prepared.prompts) * len(groups)) as advance:
        for asked, group in groups.items():

            def on_done(rows: int, asked: str = asked) -> None:
                nonlocal done
                done += rows
                advance(done, asked)

            given = candidates.answer(
                models[asked],
                exported.get(asked),
                prepared,
                tokenizer,
                evaluate.max_new_tokens,
                compute.threads,
                on_done,
            )
            _check_finite(asked, given)
            for name in group:
                answers[name] = given
                timings = {f"{name}/{key}": value for key, value in given.timings.items()}
                tracking.log_metrics(timings)
    return {name: answers[name] for name in models}


def _check_finite(name: str, answers: Answers) -> None:
    for position, likelihood in enumerate(answers.likelihoods):
        if not math.isfinite(likelihood.nll):
            raise StageError(
                f"{name} gives the expected answer of row {position + 1} a likelihood of "
                f"{likelihood.nll}: its weights hold NaN or infinity; lower the learning rate of "
                f"the stage that made it and run `dvc repro` again"
            )


def _compare_served(
    merged: Path,
    probes: Sequence[Ids],
    prepared: Prepared,
    evaluate: Evaluate,
    compute: Compute,
) -> None:
    """Say so when the exported model does not answer as the trained one does."""
    share = candidates.served_equals_trained(
        merged,
        probes[:COMPARED],
        prepared.prompts[:COMPARED],
        evaluate.max_new_tokens,
        compute.threads,
    )
    tracking.log_metrics({"served_equals_trained": share})
    if share < 1:
        log.warning(
            "models/onnx answers only %.0f%% of %d prompts as models/merged does, token by token; "
            "see merge.onnx_precision, and merge.max_kl for how far apart they may be",
            100 * share,
            len(probes[:COMPARED]),
        )
    else:
        log.info("models/onnx answers as models/merged does, token by token")


def _measure(
    rows: Sequence[Row],
    answers: Answers,
    contaminated: Mapping[str, Contamination],
    evaluate: Evaluate,
    compute: Compute,
) -> dict[str, dict[str, Estimate]]:
    """Metrics by split; none stands without the share of the split that was trained on."""
    answered = [
        (row, Answered(row.expected, text, likelihood.nll, likelihood.tokens))
        for row, text, likelihood in zip(rows, answers.texts, answers.likelihoods, strict=True)
    ]
    measured = {
        split: measure(
            [given for row, given in answered if row.is_in(split)],
            evaluate.confidence,
            compute.seed,
        )
        for split in SPLITS
    }
    for split, metrics in measured.items():
        if metrics:
            metrics[contamination.METRIC] = contaminated[split].share(evaluate.confidence)
    return measured


def _tell(measured: Measured, verdict: gates.Verdict) -> None:
    """A table of the test on the terminal, then the gates."""
    metrics = list(measured[FINAL]["test"])
    width = max(map(len, metrics))
    log.info("%s", " " * width + "".join(f"{name:>9}" for name in measured))
    for metric in metrics:
        values = (splits["test"][metric]["value"] for splits in measured.values())
        shown = ("-" if value is None else f"{value:.3f}" for value in values)
        log.info("%s", f"{metric:<{width}}" + "".join(f"{value:>9}" for value in shown))
    for gate in verdict["gates"]:
        tell = log.info if gate["passed"] else log.warning
        tell("gate %s: %s", gate["metric"], gate["why"])
    log.info("verdict: %s", verdict["verdict"])


if __name__ == "__main__":
    stage.main(run)
