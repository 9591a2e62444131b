"""What came of a run: the scores of every candidate, the verdict, and where to look next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.evaluation import conclusions, markdown

if TYPE_CHECKING:
    from rich.console import Console

METRICS = Path("models/evaluate.metrics.json")
VERDICT = Path("models/verdict.json")
REPORT = Path("models/report/index.html")
CARD = Path("models/report/model_card.md")
LOCAL_UI = "http://127.0.0.1:5000"
PROVENANCE = Path("models/provenance.json")

MOST_METRICS = 4
"""Columns of the table; the report has every metric."""
WIDE = 140
"""Columns of a console that so many metrics with their intervals fit on."""


class NoResults(Exception):
    """There is nothing to report yet."""


@dataclass(frozen=True)
class Results:
    """What models/evaluate.metrics.json and models/verdict.json hold, and how sure intervals are."""

    document: dict[str, Any]
    verdict: dict[str, Any]
    confidence: float

    @property
    def passed(self) -> bool:
        return bool(self.verdict["verdict"] == "pass")

    @property
    def candidates(self) -> dict[str, Any]:
        """Scores as {candidate: {split: {metric: {"value", "low", "high"}}}}."""
        return self.document["candidates"]  # type: ignore[no-any-return]

    def splits(self) -> list[str]:
        return _once(split for of in self.candidates.values() for split in of if of[split])

    def metrics(self, split: str) -> list[str]:
        """The metrics of the table: the primary one first, then those with a gate."""
        return conclusions.shown_metrics(self.document, self.verdict["gates"], split, MOST_METRICS)

    def asked(self, split: str) -> list[str]:
        """The candidates that answered the rows of a split."""
        return [name for name, of in self.candidates.items() if of.get(split)]

    def cell(self, candidate: str, split: str, metric: str, separator: str = " ") -> str:
        """A score with its interval; empty where a candidate has none."""
        score = self.candidates[candidate].get(split, {}).get(metric)
        if score is None:
            return ""
        if score["value"] is None:
            return "not judged"
        value = conclusions.number(score["value"])
        if score["low"] is None or score["high"] is None:
            return value
        low, high = conclusions.number(score["low"]), conclusions.number(score["high"])
        return f"{value}{separator}[{low}, {high}]"

    def rows(self) -> list[dict[str, str]]:
        """A row for each split and candidate, with a column for each metric of any split."""
        metrics = _once(metric for split in self.splits() for metric in self.metrics(split))
        return [
            {
                "split": split,
                "candidate": name,
                **{metric: self.cell(name, split, metric) for metric in metrics},
            }
            for split in self.splits()
            for name in self.asked(split)
        ]

    def gates(self) -> list[str]:
        return [
            f"{conclusions.result(gate)}  {conclusions.gate_name(gate)} on "
            f"{gate['split']}: {gate['why']}"
            for gate in self.verdict["gates"]
        ]

    def headline(self) -> str:
        return f"verdict on {self.verdict['candidate']}: {self.verdict['verdict']}"

    def answers(self) -> list[conclusions.Answer]:
        """What a reviewer asks, answered."""
        return [
            *conclusions.headline(self.document, self.verdict, self.confidence),
            *conclusions.reservations(self.document, self.verdict, self.confidence),
        ]

    def markdown(self, links: Mapping[str, str]) -> str:
        """The verdict, why, and where to look, for Prefect's page of the run.

        Args:
            links: addresses by what they lead to.
        """
        lines = [f"## {markdown.escape(self.headline())}", ""]
        for answer in self.answers():
            text = markdown.escape(answer.text)
            lines += [f"{answer.question} **{markdown.escape(answer.short)}.** {text}", ""]
        lines += [f"- {markdown.escape(gate)}" for gate in self.gates()]
        lines += ["", *(f"- {markdown.escape(what)}: <{where}>" for what, where in links.items())]
        lines += [f"- {what}: {where}" for what, where in where_to_look()]
        return "\n".join(lines) + "\n"

    def show(self, console: Console) -> None:
        """Print a table a split, a candidate a row, what follows from it, and where to look next."""
        from rich.table import Table
        from rich.text import Text

        separator = " " if console.width >= WIDE else "\n"
        for split in self.splits():
            metrics = self.metrics(split)
            table = Table(title=split, title_justify="left", box=None, padding=(0, 2, 0, 0))
            for column in ("", *metrics):
                table.add_column(column)
            for name in self.asked(split):
                cells = (self.cell(name, split, metric, separator) for metric in metrics)
                table.add_row(name, *map(Text, cells))
            console.print(table)
            console.print()
        for answer in self.answers():
            text = f"{answer.question} {answer.short}. {answer.text}"
            console.print(Text(text), soft_wrap=True)
        console.print()
        console.print(Text(self.headline(), style="green" if self.passed else "red"))
        for gate in self.gates():
            console.print(Text(f"  {gate}"), soft_wrap=True)
        console.print()
        for what, where in where_to_look():
            console.print(Text(f"{what + ':':<9}{where}"), soft_wrap=True)


def read() -> Results:
    """The result of the last evaluation.

    Raises:
        NoResults: when there is none.
    """
    for path in (METRICS, VERDICT):
        if not path.is_file():
            raise NoResults(f"{path} does not exist; `tunetrail run` makes it")
    from tasks.params import load

    document = json.loads(METRICS.read_text(encoding="utf-8"))
    if "candidates" not in document:
        raise NoResults(f"{METRICS} is of an earlier form; `tunetrail run evaluate` makes it anew")
    return Results(
        document=document,
        verdict=json.loads(VERDICT.read_text(encoding="utf-8")),
        confidence=load(Path("params.yaml")).evaluate.confidence,
    )


def where_to_look() -> list[tuple[str, str]]:
    """The report, the runs and the registered version: what it is, and how to come to it."""
    uri = _tracking_server()
    there = f"Models at {uri}" if uri else "Models of `mlflow ui`"
    places = [
        ("report", f"open {REPORT}"),
        ("card", f"{CARD}"),
        ("runs", uri or f"`mlflow ui`, then {LOCAL_UI}"),
    ]
    if PROVENANCE.is_file():
        name = f"{_registered_name()}-candidates"
        places.append(("version", f"{name}, under {there}; if missing there, `tunetrail sync`"))
    return places


def _registered_name() -> str:
    from tasks.params import load

    return load(Path("params.yaml")).register_.name


def _tracking_server() -> str | None:
    """The address of the MLflow server, where runs go to one."""
    from tasks.lineage.store import without_password

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return without_password(uri).rstrip("/") if uri.startswith(("http://", "https://")) else None


def mlflow_run(out: str) -> str | None:
    """The page of the run that wrote an output as it lies there; None where MLflow does not answer
    or does not know it. Without a server it is the page that `mlflow ui` shows."""
    from tasks.lineage import hashes, store

    server = _tracking_server() or (LOCAL_UI if Path("mlflow.db").exists() else None)
    if server is None:
        return None
    try:
        client = store.connect()
    except store.Unreachable:
        return None
    experiment = client.get_experiment_by_name(_registered_name())
    if experiment is None:
        return None
    wanted = f"tags.`out:{out}` = '{hashes.dvc_md5(Path(out))}'"
    found = client.search_runs([experiment.experiment_id], wanted, max_results=1)
    if not found:
        return None
    return f"{server}/#/experiments/{experiment.experiment_id}/runs/{found[0].info.run_id}"


def _once(names: Any) -> list[str]:
    """Without repeats, in the order of first sight."""
    return list(dict.fromkeys(names))
