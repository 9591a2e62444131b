"""What the stages before training tell of the data, for the tests of what evaluates and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INGEST = {
    "rows_in": 70,
    "rows_out": 66,
    "rows_rejected": 4,
    "files": {
        "a.jsonl": {"rows_in": 60, "rows_out": 57, "rejected": {"nul": 1, "duplicate_id": 2}},
        "b.csv": {"rows_in": 10, "rows_out": 9, "rejected": {"nul": 1}},
    },
}
VALIDATE = {
    "rows_in": 66,
    "rows_out": 60,
    "rows_rejected": 6,
    "kinds": {
        "chat": {"rejected": {"contradiction": 4}},
        "text": {"rejected": {"personal_data_card": 2}},
    },
    "quality": {"consistency": 1.0, "clusters": 0.875, "class_balance": None, "warnings": 1},
}
FORMAT = {
    "rows_in": 60,
    "rows_out": 52,
    "rows_rejected": 8,
    "rejected": {"leak": 3, "near_duplicate": 5},
    "too_short_to_judge": 2,
    "test": {"novelty": 0.22, "tokens": 31.5},
    "hard_test": {"novelty": 0.41, "tokens": 44.0},
}


def contamination(rows: Mapping[str, int], contaminated: Mapping[str, int]) -> dict[str, Any]:
    """What contamination.json holds; a split that `contaminated` does not name was not judged."""
    return {
        split: {
            "rows": count,
            "judged": count if split in contaminated else 0,
            "contaminated": contaminated.get(split, 0),
            "share": contaminated[split] / count if split in contaminated and count else None,
        }
        for split, count in rows.items()
    }


def write_plots(formatted: Path) -> None:
    """The four plots of data/formatted."""
    plots = formatted / "plots"
    plots.mkdir(parents=True)
    (plots / "splits.csv").write_text("split,rows\ntrain,40\ntest,8\nhard_test,2\n")
    (plots / "lengths.csv").write_text(
        "split,tokens,rows\ntrain,16,30\ntrain,32,8\ntrain,80,2\ntest,32,8\n"
    )
    (plots / "classes.csv").write_text(
        'split,class,rows\ntrain,"{""category"":""a""}",25\ntrain,other,15\n'
        'test,"{""category"":""a""}",5\ntest,other,3\n'
    )
    (plots / "clusters.csv").write_text("size,rows\n1,45\n2,4\n3,3\n")


def write_metrics(folder: Path) -> dict[str, Path]:
    """The metrics files of ingest, validate and format, by stage."""
    paths = {}
    for stage, metrics in (("ingest", INGEST), ("validate", VALIDATE), ("format", FORMAT)):
        paths[stage] = folder / f"{stage}.metrics.json"
        paths[stage].write_text(json.dumps(metrics))
    return paths
