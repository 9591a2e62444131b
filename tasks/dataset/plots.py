"""The numbers behind the pictures of the formatted data, as CSV files without dates."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tasks.dataset.columns import CHAT, PREFERENCE, Rows
from tasks.dataset.ngrams import Flags
from tasks.dataset.privacy import snippet
from tasks.dataset.splits import BENCHMARK, NOWHERE, Plan

BINS = 32
"""Of lengths, up to the longest that is allowed."""

CLASSES = 30
LABEL_CHARACTERS = 60
_LABELLED = ("train", "validation", "test", "hard_test")


def write(
    folder: Path, rows: Rows, plan: Plan, parts: Mapping[str, Flags], max_tokens: int
) -> None:
    """Write splits.csv, lengths.csv, classes.csv and clusters.csv. `parts`: the rows of each split."""
    folder.mkdir()
    sizes = [(split, int(plan.copies[part].sum())) for split, part in parts.items()]
    _write(folder / "splits.csv", ("split", "rows"), sizes)
    lengths = _lengths(rows, plan, parts, max_tokens)
    _write(folder / "lengths.csv", ("split", "tokens", "rows"), lengths)
    _write(folder / "classes.csv", ("split", "class", "rows"), _classes(rows, plan, parts))
    _write(folder / "clusters.csv", ("size", "rows"), _clusters(rows, plan))


def _write(path: Path, header: Iterable[str], lines: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def _lengths(
    rows: Rows, plan: Plan, parts: Mapping[str, Flags], max_tokens: int
) -> list[tuple[str, int, int]]:
    """Rows by split and length, a preference by its longer answer; a bin is named by its upper
    bound, and every split has every bin up to the longest row."""
    width = -(-max_tokens // BINS)
    number = (rows.columns.tokens.max(axis=1) + width - 1) // width
    talked = {split: part for split, part in parts.items() if split != "corpus"}
    used = np.logical_or.reduce(list(talked.values()))
    bins = int(number[used].max(initial=0)) + 1
    return [
        (split, place * width, int(count))
        for split, part in talked.items()
        for place, count in enumerate(np.bincount(number[part], plan.copies[part], bins))
        if place
    ]


def _classes(rows: Rows, plan: Plan, parts: Mapping[str, Flags]) -> list[tuple[str, str, int]]:
    """Rows by split and answer: the commonest answers of all splits, and all others together."""
    labels = rows.columns.label
    used = np.flatnonzero(parts["train"] | parts["validation"] | parts["test"])
    known, first, counts = np.unique(labels[used], return_index=True, return_counts=True)
    commonest = np.lexsort((known, -counts))[:CLASSES]
    named = {int(known[place]): _shown(rows, int(used[first[place]])) for place in commonest}
    found = []
    for split in _LABELLED:
        part = parts[split]
        classes, number = np.unique(labels[part], return_inverse=True)
        sizes = np.bincount(number, plan.copies[part]).astype(np.int64).tolist()
        shown = Counter(dict.fromkeys(named.values(), 0))
        for name, size in zip(classes.tolist(), sizes, strict=True):
            shown[named.get(name, "other")] += size
        found += [(split, name, size) for name, size in shown.items()]
    return found


def _shown(rows: Rows, row: int) -> str:
    return snippet(rows.label(row), LABEL_CHARACTERS)


def _clusters(rows: Rows, plan: Plan) -> list[tuple[int, int]]:
    """Chats and preferences by the size of their cluster."""
    compared = np.isin(rows.columns.kind, (CHAT, PREFERENCE))
    compared &= (plan.side != NOWHERE) & (plan.side != BENCHMARK)
    _, sizes = np.unique(plan.cluster[compared], return_counts=True)
    found, counts = np.unique(sizes, return_counts=True)
    return [
        (size, size * count) for size, count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
