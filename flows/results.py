"""What came of a run: the scores of every candidate, the verdict, and where to look next."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

METRICS = Path("models/evaluate.metrics.json")
VERDICT = Path("models/verdict.json")
REPORT = Path("models/report/index.html")
LOCAL_UI = "http://127.0.0.1:5000"
PROVENANCE = Path("models/provenance.json")

CONTAMINATION = "contaminated_share"
UNKNOWN = {"value": None, "low": None, "high": None}

WIDE = 110
"""Columns of a console that four candidates with their intervals fit on."""


class NoResults(Exception):
    """There is nothing to report yet."""


@dataclass(frozen=True)
class Results:
    """Scores as {candidate: {split: {metric: {"value", "low", "high"}}}}, and the verdict."""

    scores: dict[str, dict[str, dict[str, dict[str, float | None]]]]
    verdict: dict[str, Any]

    @property
    def passed(self) -> bool:
        return bool(self.verdict["verdict"] == "pass")

    def splits(self) -> list[str]:
        return _once(split for of in self.scores.values() for split in of)

    def metrics(self, split: str) -> list[str]:
        return _once(metric for of in self.scores.values() for metric in of.get(split, {}))

    def cell(self, candidate: str, split: str, metric: str, separator: str = " ") -> str:
        """A score with its interval; empty where a candidate has none."""
        score = self.scores[candidate].get(split, {}).get(metric)
        if score is None:
            return ""
        if score["value"] is None:
            return "not judged"
        if score["low"] is None or score["high"] is None:
            return f"{score['value']:.3f}"
        return f"{score['value']:.3f}{separator}[{score['low']:.3f}, {score['high']:.3f}]"

    def rows(self) -> list[dict[str, str]]:
        """A row for each split and metric, with a column for each candidate."""
        return [
            {
                "split": split,
                "metric": metric,
                **{name: self.cell(name, split, metric) for name in self.scores},
            }
            for split in self.splits()
            for metric in self.metrics(split)
        ]

    def gates(self) -> list[str]:
        return [
            f"{'holds' if gate['passed'] else 'fails'}  {gate['metric']} on {gate['split']}: "
            f"{gate['why']}"
            for gate in self.verdict["gates"]
        ]

    def headline(self) -> str:
        return f"verdict on {self.verdict['candidate']}: {self.verdict['verdict']}"

    def reservation(self) -> str:
        """How far the verdict is to be believed: a score on rows that were trained on says little."""
        share = self.verdict.get(CONTAMINATION) or UNKNOWN
        if share["value"] is None:
            return "whether the test's rows stand in the training data was not judged"
        return (
            f"{share['value']:.1%} of the test's rows that can be judged stand in the training data "
            f"({CONTAMINATION} {share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}])"
        )

    def markdown(self) -> str:
        """The verdict, its gates and where to look, for Prefect's page of the run."""
        lines = [f"## {self.headline()}", "", self.reservation(), ""]
        lines += [f"- {gate}" for gate in self.gates()]
        lines += ["", *(f"- {what}: {where}" for what, where in where_to_look())]
        return "\n".join(lines) + "\n"

    def show(self, console: Console) -> None:
        """Print a table a split, the candidates side by side, and what to look at next."""
        from rich.table import Table
        from rich.text import Text

        separator = " " if console.width >= WIDE else "\n"
        for split in self.splits():
            table = Table(title=split, title_justify="left", box=None, padding=(0, 2, 0, 0))
            table.add_column("")
            for candidate in self.scores:
                table.add_column(candidate)
            for metric in self.metrics(split):
                cells = (self.cell(name, split, metric, separator) for name in self.scores)
                table.add_row(metric, *map(Text, cells))
            console.print(table)
            console.print()
        console.print(Text(self.headline(), style="green" if self.passed else "red"))
        for gate in self.gates():
            console.print(Text(f"  {gate}"))
        console.print(Text(f"  {self.reservation()}"), soft_wrap=True)
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
    return Results(
        scores=json.loads(METRICS.read_text(encoding="utf-8")),
        verdict=json.loads(VERDICT.read_text(encoding="utf-8")),
    )


def where_to_look() -> list[tuple[str, str]]:
    """The report, the runs and the registered version: what it is, and how to come to it."""
    uri = _tracking_server()
    there = f"Models at {uri}" if uri else "Models of `mlflow ui`"
    places = [
        ("report", f"open {REPORT}"),
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
