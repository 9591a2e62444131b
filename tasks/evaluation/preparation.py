"""What the stages before training made of the data: the numbers behind the report's Data section."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lineage.stage import StageError

PLOTS = "plots"


@dataclass(frozen=True)
class Flow:
    """Rows through a stage; `rejected` is rows by reason, the commonest first."""

    stage: str
    rows_in: int
    rows_out: int
    rejected: dict[str, int]


@dataclass(frozen=True)
class Preparation:
    """All in the order of the files."""

    splits: dict[str, int]
    lengths: dict[str, dict[int, int]]
    """By split: the upper bound of a bin, in tokens, and its rows."""
    classes: dict[str, dict[str, int]]
    """By split: an answer and its rows."""
    clusters: dict[str, int]
    """Rows by the size of their cluster of near-duplicates."""
    flows: list[Flow]
    quality: dict[str, float | None]
    """Scores of the quality checklist, 0 to 1; None for what cannot be judged of this data."""
    few_rows: bool
    """Whether `validate` warned of too few training chats."""
    hardness: dict[str, tuple[float | None, float | None]]
    """What makes test rows hard: by measure, its mean over the test and over the hard test."""
    too_short: int
    """Held-out rows with too few words for contamination to be seen."""


def read(data: Path, metrics_of: Mapping[str, Path]) -> Preparation:
    """Read the plots of data/formatted, and what the stages before it counted.

    Args:
        metrics_of: the metrics files of ingest, validate and format, by stage.

    Raises:
        StageError: when a plot is missing or has other columns, or counts do not add up.
    """
    metrics = {
        stage: json.loads(path.read_text(encoding="utf-8")) for stage, path in metrics_of.items()
    }
    plots, formatted = data / PLOTS, metrics["format"]
    quality = dict(metrics["validate"]["quality"])
    warnings = quality.pop("warnings")
    return Preparation(
        splits={row["split"]: int(row["rows"]) for row in _rows(plots / "splits.csv")},
        lengths=_by_split(plots / "lengths.csv", "tokens", int),
        classes=_by_split(plots / "classes.csv", "class", str),
        clusters={row["size"]: int(row["rows"]) for row in _rows(plots / "clusters.csv")},
        flows=[_flow(stage, found) for stage, found in metrics.items()],
        quality=quality,
        few_rows=bool(warnings),
        hardness={
            measure: (mean, formatted["hard_test"][measure])
            for measure, mean in formatted["test"].items()
        },
        too_short=formatted["too_short_to_judge"],
    )


_COLUMNS = {
    "splits.csv": {"split", "rows"},
    "lengths.csv": {"split", "tokens", "rows"},
    "classes.csv": {"split", "class", "rows"},
    "clusters.csv": {"size", "rows"},
}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    remedy = f"{path.parent.parent} is stale or was edited; `dvc repro -s -f format` writes it anew"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not _COLUMNS[path.name] <= set(reader.fieldnames or ()):
                columns = ", ".join(sorted(_COLUMNS[path.name]))
                raise StageError(f"{path} lacks one of the columns {columns}; {remedy}")
            yield from reader
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; {remedy}") from None


def _by_split(path: Path, key: str, of: Any) -> dict[str, dict[Any, int]]:
    found: defaultdict[str, dict[Any, int]] = defaultdict(dict)
    for row in _rows(path):
        found[row["split"]][of(row[key])] = int(row["rows"])
    return dict(found)


def _flow(stage: str, metrics: Mapping[str, Any]) -> Flow:
    counts: defaultdict[str, int] = defaultdict(int)
    for reason, rows in _rejected(metrics):
        counts[reason] += rows
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    if sum(ordered.values()) != metrics["rows_rejected"]:
        raise StageError(
            f"models/{stage}.metrics.json has {metrics['rows_rejected']} rows rejected, and "
            f"{sum(ordered.values())} by reason; `dvc repro -s -f {stage}` writes it anew"
        )
    return Flow(stage, metrics["rows_in"], metrics["rows_out"], ordered)


def _rejected(metrics: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Rows by reason, which stages count for each file, for each kind, or in all."""
    for key, value in metrics.items():
        if key == "rejected":
            yield from value.items()
        elif isinstance(value, Mapping):
            yield from _rejected(value)
