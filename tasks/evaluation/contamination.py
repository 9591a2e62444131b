"""How much of what is tested stands in the training data too, as `format` left it.

A score on rows that were trained on says little, so this share stands beside every score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation.statistics import Estimate, proportion
from tasks.lineage.stage import StageError

METRIC = "contaminated_share"
FILE = "contamination.json"
NOT_JUDGED: Estimate = {"value": None, "low": None, "high": None}


@dataclass(frozen=True)
class Contamination:
    """Rows of a split, how many of them have words enough to be judged, and how many of these a
    training row or document still holds."""

    rows: int
    judged: int
    contaminated: int

    def share(self, confidence: float) -> Estimate:
        """The contaminated share with Wilson's interval, of all rows of the split that could be
        judged, also where fewer are evaluated on."""
        if not self.judged:
            return NOT_JUDGED
        return proportion(self.contaminated, self.judged, confidence)


def read(data: Path, rows: Mapping[str, int]) -> dict[str, Contamination]:
    """By split, and by file for what was only compared with.

    Args:
        rows: of the splits that must be there, as counted in their files.

    Raises:
        StageError: when the file is not there, cannot be read, or does not speak of these rows.
    """
    path = data / FILE
    remedy = f"{data} is stale or was edited; `dvc repro -s -f format` writes it anew"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        found = {split: _of(entry) for split, entry in stated.items()}
    except FileNotFoundError:
        raise StageError(
            f"{path} does not exist, and no score stands without it; {remedy}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StageError(
            f"{path} is not {{split: {{rows, judged, contaminated, share}}}}; {remedy}"
        ) from None
    for split, count in rows.items():
        if split not in found:
            raise StageError(f"{path} says nothing of {split}; {remedy}")
        if found[split].rows != count:
            raise StageError(
                f"{path} speaks of {found[split].rows} rows in {split}, which has {count}; {remedy}"
            )
    return found


def _of(entry: Mapping[str, Any]) -> Contamination:
    rows, judged, contaminated = (int(entry[key]) for key in ("rows", "judged", "contaminated"))
    if not 0 <= contaminated <= judged <= rows:
        raise ValueError("more are contaminated than judged, or more judged than there are")
    return Contamination(rows, judged, contaminated)
