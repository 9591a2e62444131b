"""Which rows to mend: every row that a stage did not use, with its place and the reason."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from tasks.lineage.stage import STATE

KEPT = Path("data/rejected")
"""The lists of stages that are done; DVC tracks them."""
FAILED = STATE / "rejected"
"""The lists of stages whose last run failed, and whose outputs were discarded."""
ORDER = ("ingest", "validate", "format")


class Unreadable(Exception):
    """A list of rejects is not what a stage writes."""


@dataclass(frozen=True)
class Reject:
    """A row that was not used. `file`, `line` (from 1) and `byte` are known where a source is read;
    later a row is known by its source and id."""

    stage: str
    source: str
    file: str | None
    line: int | None
    byte: int | None
    id: str | None
    reason: str
    detail: str
    snippet: str

    @property
    def place(self) -> str:
        """Where to find the row in the raw data."""
        if self.line is None:
            return f"{self.source} {self.id}"
        byte = "" if self.byte is None else f" (byte {self.byte})"
        return f"{self.file}:{self.line}{byte}"


@dataclass(frozen=True)
class Wanted:
    """What is asked for; None asks for everything."""

    stage: str | None
    reason: str | None
    source: str | None

    def fits(self, reject: Reject) -> bool:
        asked = ((self.stage, reject.stage), (self.reason, reject.reason))
        return all(want in (None, is_) for want, is_ in (*asked, (self.source, reject.source)))

    def __str__(self) -> str:
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return " ".join(f"--{name} {value}" for name, value in given if value is not None)


Total = tuple[str, str, str]
"""Stage, source, reason."""


@dataclass(frozen=True)
class Found:
    """Rejects that fit: how many of each sort, and the first of them."""

    totals: Counter[Total]
    first: list[Reject]
    others: Counter[Total]
    """What there is beside them."""
    failed: list[str]
    """The stage whose last run failed, if there is one."""
    earlier: list[str]
    """Stages behind it: their lists are of an earlier run, and not counted."""

    @property
    def rows(self) -> int:
        return self.totals.total()


@dataclass(frozen=True)
class Lists:
    """The list of each stage that has one, in the order of the stages: `current` up to the first
    stage whose last run failed, and `earlier` behind it."""

    current: dict[str, Path]
    earlier: dict[str, Path]

    @property
    def failed(self) -> list[str]:
        return [stage for stage, path in self.current.items() if path.parent == FAILED]


def lists() -> Lists:
    """What there is to read: of the last run of each stage, be it done or failed."""
    found = {path.stem: path for path in sorted(KEPT.glob("*.jsonl"))}
    found |= {path.stem: path for path in sorted(FAILED.glob("*.jsonl"))}
    rank = {stage: at for at, stage in enumerate(ORDER)}
    stages = sorted(found, key=lambda stage: (rank.get(stage, len(rank)), stage))
    failed = [at for at, stage in enumerate(stages, start=1) if found[stage].parent == FAILED]
    end = failed[0] if failed else len(stages)
    return Lists(
        {stage: found[stage] for stage in stages[:end]},
        {stage: found[stage] for stage in stages[end:]},
    )


def read() -> Iterator[Reject]:
    """Every reject but those of earlier runs, one at a time, for there may be many.

    Raises:
        Unreadable: at a line that no stage wrote.
    """
    for stage, path in lists().current.items():
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _reject(stage, path, number, line)


def _reject(stage: str, path: Path, number: int, line: str) -> Reject:
    try:
        entry: dict[str, Any] = json.loads(line)
        return Reject(stage, **{field.name: entry[field.name] for field in fields(Reject)[1:]})
    except (ValueError, KeyError, TypeError):
        raise Unreadable(
            f"{path}:{number} is no entry of a list of rejects; remove the file and run "
            f"`tunetrail run {stage} --force`"
        ) from None


def find(wanted: Wanted, limit: int, table: IO[str] | None) -> Found:
    """Count all rejects that fit, keep the first `limit`, and write all to a CSV file if asked to.

    Raises:
        Unreadable: at a line that no stage wrote.
    """
    there = lists()
    found = Found(Counter(), [], Counter(), there.failed, [*there.earlier])
    rows = csv.writer(table, lineterminator="\n") if table else None
    if rows:
        rows.writerow(field.name for field in fields(Reject))
    for reject in read():
        counts = found.totals if wanted.fits(reject) else found.others
        counts[reject.stage, reject.source, reject.reason] += 1
        if counts is found.others:
            continue
        if len(found.first) < limit:
            found.first.append(reject)
        if rows:
            rows.writerow(_cell(getattr(reject, field.name)) for field in fields(reject))
    return found


def _cell(value: object) -> object:
    """A spreadsheet runs a cell that begins with one of these signs; an apostrophe makes it text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {*"=+-@\t\r"} else value


def describe(found: Found, wanted: Wanted) -> Iterator[str]:
    """Lines to print: totals first, then rows."""
    if not found.rows:
        yield _nothing(found, wanted)
        yield from _left_out(found)
        return
    yield f"{_rows(found.rows)} rejected"
    for stage in found.failed:
        if any(of == stage for of, _, _ in found.totals):
            yield f"The last run of {stage} failed; these are the rows that it rejected."
    yield from _left_out(found)
    yield ""
    yield from _table(found.totals)
    for stage in dict.fromkeys(reject.stage for reject in found.first):
        yield ""
        yield f"{stage}:"
        for reject in found.first:
            if reject.stage == stage:
                yield from _lines(reject)
    if len(found.first) < found.rows:
        yield ""
        yield (
            f"The first {len(found.first)} of {found.rows}. --limit N shows more, --csv FILE writes "
            "all of them; --stage, --reason and --source choose."
        )


def _left_out(found: Found) -> Iterator[str]:
    if found.earlier:
        yield (
            f"The lists of {', '.join(found.earlier)} are of an earlier run and left out: "
            f"{found.failed[0]} comes before."
        )


def _nothing(found: Found, wanted: Wanted) -> str:
    if found.others:
        stages, sources, reasons = (
            ", ".join(dict.fromkeys(of)) for of in zip(*found.others, strict=True)
        )
        return (
            f"No rejected row has {wanted}.\n"
            f"There are rejects of the stages {stages}; of the sources {sources}; "
            f"for the reasons {reasons}."
        )
    if found.failed:
        return f"No row was rejected before the last run of {found.failed[0]} failed."
    if lists().current:
        return "No row was rejected: every row that was read went on."
    return "No stage has looked at a row yet. `tunetrail run format` runs those that do."


def _table(totals: Counter[Total]) -> Iterator[str]:
    """Stages in their order, in each the commonest first."""
    stages = list(dict.fromkeys(stage for stage, _, _ in totals))
    ranked = sorted(totals.items(), key=lambda item: (stages.index(item[0][0]), -item[1], item[0]))
    lines = [("stage", "source", "reason", "rows")]
    lines += [(*names, str(count)) for names, count in ranked]
    widths = [max(len(_plain(line[at])) for line in lines) for at in range(4)]
    for stage, source, reason, rows in lines:
        yield (
            f"{stage:<{widths[0]}}  {_plain(source):<{widths[1]}}  {_plain(reason):<{widths[2]}}  "
            f"{rows:>{widths[3]}}"
        )


def _lines(reject: Reject) -> Iterator[str]:
    named = f" {reject.id}" if reject.id is not None and reject.line is not None else ""
    yield _plain(f"  {reject.place}{named}  {reject.reason}: {reject.detail}")
    if reject.snippet:
        yield _plain(f"      {reject.snippet}")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _plain(text: str) -> str:
    """Without what a terminal would obey or not show."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
