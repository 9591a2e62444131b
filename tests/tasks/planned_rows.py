"""Rows as columns, with planted clusters and groups, for the tests of what decides where rows go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.dataset import columns, splits
from tasks.dataset.columns import Columns
from tasks.dataset.splits import Plan
from tasks.params import Split

KINDS = ("chat", "preference", "text")


@dataclass(frozen=True)
class Row:
    """A row of a planted cluster; None is a cluster of its own."""

    id: str
    cluster: str | None = None
    kind: str = "chat"
    role: str = "train"
    time: str | None = "2026-08-01"
    group: str | None = None
    answer: str = "ok"
    source: str = "s"


def split(strategy: str, **changes: Any) -> Split:
    """A split of 80, 10 and 10 percent."""
    values = {
        "strategy": strategy,
        "test_from": None,
        "test_share": 0.1,
        "validation_share": 0.1,
        "stratify_by": None,
        "by_source": {},
    }
    return Split.model_validate({**values, **changes})


def columns_of(rows: Sequence[Row]) -> Columns:
    """What `columns.reading` would make of the rows."""
    sources = sorted({row.source for row in rows})
    times = [columns.NO_TIME if r.time is None else columns.microseconds(r.time) for r in rows]
    hashes = [columns.key("", row.answer) for row in rows]
    groups = [0 if row.group is None else columns.key("", row.group) | 1 for row in rows]
    nothing = np.zeros((len(rows), 2), np.int32)
    return Columns(
        kind=np.array([KINDS.index(row.kind) for row in rows], np.int8),
        role=np.array([columns.ROLES.index(row.role) for row in rows], np.int8),
        source=np.array([sources.index(row.source) for row in rows], np.int32),
        time=np.array(times, np.int64),
        group=np.array(groups, np.uint64),
        key=np.array([columns.key(row.source, row.id) for row in rows], np.uint64),
        label=np.array(hashes, np.uint64),
        tokens=nothing,
        supervised=nothing,
        answers_left_out=np.zeros(len(rows), np.int32),
        sources=sources,
        faults={},
    )


class Planned:
    """A plan, of which steps can be taken, and what it says of each row."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        first: dict[str, int] = {}
        cluster = [
            index if row.cluster is None else first.setdefault(row.cluster, index)
            for index, row in enumerate(rows)
        ]
        self.plan = Plan(columns_of(rows), np.array(cluster, np.int64))

    def names(self, rows: Iterable[int]) -> Mapping[int, tuple[str, str]]:
        return {row: (self.rows[row].source, self.rows[row].id) for row in rows}

    def split(self, settings: Split, seed: int) -> Planned:
        """What `format` does, without contamination and mixing."""
        splits.hold_out(self.plan, settings, seed)
        splits.leave_out_leaks(self.plan)
        splits.leave_out_copies(self.plan, self.names)
        splits.choose_validation(self.plan, settings, seed)
        return self

    def where(self) -> dict[str, str]:
        """The split of each row, "benchmark", or the reason why it is left out, by id."""
        parts = self.plan.splits()
        parts["benchmark"] = self.plan.side == splits.BENCHMARK
        found = {}
        for index, row in enumerate(self.rows):
            places = [name for name, part in parts.items() if part[index]]
            if fault := self.plan.fault(index, lambda other: self.rows[other].id):
                places.append(fault.reason)
            assert len(places) == 1, f"{row} is in {places}"
            found[row.id] = places[0]
        return found

    def detail(self, id: str) -> str:
        """Why a row is left out."""
        index = next(index for index, row in enumerate(self.rows) if row.id == id)
        fault = self.plan.fault(index, lambda other: self.rows[other].id)
        assert fault is not None
        return fault.detail
