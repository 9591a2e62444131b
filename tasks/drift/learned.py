"""What the champion learned from: the rows of one source in the data that its provenance names."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.dataset import places, records
from tasks.dataset.seen_ids import SeenIds
from tasks.drift.columns import Side
from tasks.drift.sample import Sample
from tasks.lineage.stage import StageError

TRAINED = {"chat": "train.jsonl", "preference": "preferences.jsonl"}
"""The file of data/formatted that is trained on, by the kind of its records; documents are apart."""


@dataclass(frozen=True)
class Learned:
    """Outputs of the stages that made the champion, as they lie here."""

    formatted: Path
    corpus: Path
    validated: Path
    rejected: tuple[Path, Path]
    """What ingest and validate rejected."""
    sources: tuple[Mapping[str, Any], ...]
    """`ingest.sources` as they were."""


def side(learned: Learned, like: str, kind: records.Kind, rows: int, seed: int) -> Side:
    """The rows of a source that the champion was trained on, and how its rows fared before.

    Rows that are repeated to weigh more count once.

    Raises:
        StageError: when the champion learned from no such source.
    """
    if like not in [source["file"] for source in learned.sources]:
        known = ", ".join(str(source["file"]) for source in learned.sources)
        raise StageError(
            f"drift.incoming: the champion learned from no source {like}; its sources: {known}"
        )
    sample = Sample(rows, seed)
    seen = SeenIds()
    trained = learned.corpus if kind == "text" else learned.formatted / TRAINED[kind]
    for record in records.read(trained):
        if is_of(record["source"], like) and seen.add(f"{record['source']}\0{record['id']}"):
            sample.add(record)
    rejected: Counter[str] = Counter()
    for path in learned.rejected:
        rejected.update(entry["reason"] for entry in _lines(path) if is_of(entry["source"], like))
    validated = Sample(rows, seed)
    for record in records.read(learned.validated / f"{kind}.jsonl"):
        if is_of(record["source"], like):
            validated.add(record)
    return Side(list(sample), validated.seen, dict(rejected), with_copies=list(validated))


def is_of(source: str, like: str) -> bool:
    """Whether a record's source is a file, or a member of an archive, that an entry of ingest.sources
    names."""
    file = source.partition("!")[0]
    pattern = places.label(like)
    return file == pattern or (places.is_glob(pattern) and fnmatch.fnmatchcase(file, pattern))


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)
