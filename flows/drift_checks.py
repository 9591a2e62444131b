"""What a drift check wrote: the arrivals, what they were compared with, and what was found."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lineage.stage import STATE, StageError

FOLDER = STATE / "drift"
DOCUMENT = "drift.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Arrival:
    """A file that has come."""

    file: str
    """Below data/incoming, or a URL."""
    like: str
    """The source of ingest as which it is read."""
    sha256: str
    rows: int


@dataclass(frozen=True)
class Check:
    """A drift check."""

    name: str
    folder: Path
    data: str
    """The id of what arrived."""
    arrivals: tuple[Arrival, ...]
    model: str
    champion: str
    """NAME@VERSION."""
    identity: str
    """Of the champion."""
    fired: bool
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """What was found, in a line."""
        return "; ".join(self.reasons) or "no drift was found"


def read(name: str, folder: Path = FOLDER) -> Check:
    """What a check found.

    Raises:
        StageError: when there is no such check, or it is of another form.
    """
    place = folder / name
    if not re.fullmatch(r"[\w-]+", name) or not (place / DOCUMENT).is_file():
        known = sorted(path.parent.name for path in folder.glob(f"*/{DOCUMENT}"))
        remedy = f"the last is {known[-1]}" if known else "`tunetrail drift` makes one"
        raise StageError(f"there is no check {name} in {folder}; {remedy}")
    try:
        return _check(place, json.loads((place / DOCUMENT).read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise StageError(
            f"{place / DOCUMENT} is not of the form that a check writes ({error!r}); run "
            "`tunetrail drift` anew"
        ) from None


def _check(place: Path, document: dict[str, Any]) -> Check:
    if document["schema"] != 1:
        raise ValueError(f"schema {document['schema']}")
    champion = document["champion"]
    return Check(
        name=place.name,
        folder=place,
        data=str(document["data"]["id"]),
        arrivals=tuple(
            Arrival(file["file"], file["like"], file["sha256"], int(file["rows"]))
            for file in document["data"]["files"]
        ),
        model=champion["model"],
        champion=f"{champion['model']}@{champion['version']}",
        identity=champion["identity"],
        fired=bool(document["fired"]),
        reasons=tuple(document["reasons"]),
    )
