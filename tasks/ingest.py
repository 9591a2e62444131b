"""Stage ingest: read every source strictly into one record schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tasks.dataset import archives, containers, downloads, mapping, places, records, tables
from tasks.dataset.archives import Refused
from tasks.dataset.containers import Content
from tasks.dataset.faults import RowError, quoted
from tasks.dataset.readers import BadRow, Row, Rules
from tasks.dataset.rejects import Rejects, account
from tasks.dataset.seen_ids import SeenIds
from tasks.lineage import stage
from tasks.lineage.console import counted, log, progress
from tasks.lineage.stage import STATE, GateError, Metrics, Out, StageError
from tasks.lineage.tracking import log_input
from tasks.params import Ingest, Source

PROGRESS_ROWS = 1000
NUMBERED_BY_LINE = ("jsonl", "csv", "tsv")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a source; `name` is what records, rejects and metrics call it."""

    name: str
    path: Path
    form: places.Form


def run(raw: Path, out: Out, rejected: Out, ingest: Ingest) -> Metrics:
    """Read every source of params.yaml strictly into one record schema."""
    check_sources(raw, ingest)
    mappers = [
        mapping.mapper(source, f"ingest.sources[{index}]")
        for index, source in enumerate(ingest.sources)
    ]
    files: dict[str, dict[str, Any]] = {}
    with records.writing(out) as writer, Rejects(rejected) as rejects:
        for source, mapper in zip(ingest.sources, mappers, strict=True):
            rules = Rules(
                ingest.max_line_bytes, ingest.hidden_characters == "reject", source.columns
            )
            for file in files_of(raw, source):
                log_input(file.name, file.path, source.role)
                reading = Reading(file, source, mapper, writer, rejects)
                files[file.name] = reading.run(rules)
            mapper.finish()
    rows = {name: counts["rows_in"] for name, counts in files.items()}
    if over := rejects.over(rows, ingest.max_reject_share, "ingest.max_reject_share"):
        raise GateError("\n".join(over))
    return {
        "rows_in": sum(counts["rows_in"] for counts in files.values()),
        "rows_out": sum(counts["rows_out"] for counts in files.values()),
        "rows_rejected": sum(rejects.total().values()),
        "files": files,
    }


def check_sources(raw: Path, ingest: Ingest) -> None:
    """Refuse, all at once, sources that are not there or not readable.

    Raises:
        StageError: a line a fault, each with its key in params.yaml.
    """
    named = [(source.file, container_of(source)) for source in ingest.sources]
    faults = sorted(chain(places.wrong_names(named), places.not_found(raw, named)))
    if faults:
        raise StageError(
            "\n".join(f"params.yaml: ingest.sources[{at}].file {text}" for at, text in faults)
        )


def container_of(source: Source) -> places.Container | None:
    """What params.yaml says of the container, which goes before the name."""
    return source.read_as.container if source.read_as else None


def files_of(raw: Path, source: Source) -> Iterator[File]:
    """The files that a source names, sorted; those at a URL are brought first."""
    if places.is_url(source.file):
        found = [(at.name, at.path) for at in downloads.fetch(source.file, STATE / "downloads")]
    else:
        found = [(name, raw / name) for name in places.files(raw, source.file)]
    for name, path in found:
        form = places.form(places.path_of(name), container_of(source))
        if not form.known:
            raise StageError(f"{name}: its container is not known; narrow the pattern of the URL")
        yield File(name, path, form)


def parts_of(file: File, source: Source) -> Iterator[Content | Refused]:
    """The file itself, or the members of an archive."""
    if file.form.archive:
        yield from archives.members(file.path, file.name, file.form, container_of(source))
    else:
        with containers.opened(file.path, file.name, file.form) as content:
            yield content


class Reading:
    """One file on its way into records, and what became of its rows."""

    def __init__(
        self,
        file: File,
        source: Source,
        mapper: mapping.Mapper,
        writer: records.Writer,
        rejects: Rejects,
    ) -> None:
        self._file = file
        self._source = source
        self._mapper = mapper
        self._writer = writer
        self._rejects = rejects
        self._rows_in = 0

    def run(self, rules: Rules) -> dict[str, Any]:
        """Read the file to its end; how many rows came in, went out and were rejected, by reason."""
        name, kind, before = self._file.name, self._source.kind, self._writer.rows.copy()
        size = self._file.path.stat().st_size
        with progress(f"reading {name}, bytes", size) as advance:
            for part in parts_of(self._file, self._source):
                if isinstance(part, Refused):
                    self._refuse(part)
                    continue
                for done in self._read(part, rules):
                    if done % PROGRESS_ROWS == 0:
                        advance(part.position(), f"{self._rows_in} rows")
        if not self._rows_in:
            raise StageError(f"{name} holds no rows; fill it, or remove it from ingest.sources")
        rows_out = self._writer.rows[kind] - before[kind]
        account(name, self._rows_in, rows_out, self._rejects.count(name))
        reasons = self._rejects.by_reason(name)
        rejected = sum(reasons.values())
        log.info("%s: %d rows, %d rejected: %s", name, self._rows_in, rejected, counted(reasons))
        counts = {"rows_in": self._rows_in, "rows_out": rows_out}
        return {**counts, "rejected": dict(sorted(reasons.items()))}

    def _read(self, part: Content, rules: Rules) -> Iterator[int]:
        """Take the rows of one stream, in which no id may come twice; the number of each."""
        name, kind, write = part.name, self._source.kind, self._writer.write
        make, columns = self._mapper.record, rules.columns
        wanted = None if columns is None else set(columns)
        by_line = part.container in NUMBERED_BY_LINE
        seen = SeenIds()
        for number, row in enumerate(containers.rows(part, rules), start=1):
            self._rows_in += 1
            id = None
            try:
                if isinstance(row, BadRow):
                    raise RowError(row.reason, row.detail)
                if wanted is not None and row.values.keys() != wanted:
                    check_columns(row.values, columns or [])
                spare_id = f"line-{row.line:07}" if by_line else f"row-{number:07}"
                record = make(row.values, spare_id, name)
                id = record["id"]
                if not seen.add(id):
                    raise RowError("duplicate_id", "the id comes a second time")
                write(kind, record)
            except RowError as fault:
                self._reject(name, row, id, fault)
            yield number

    def _reject(self, name: str, row: Row | BadRow, id: str | None, fault: RowError) -> None:
        shown = row.raw
        if not shown and isinstance(row, Row):
            shown = tables.shown(row.values)
        self._rejects.add(
            name, fault.reason, fault.detail, shown,
            id=id, line=row.line, byte=row.byte, under=self._file.name,
        )  # fmt: skip

    def _refuse(self, member: Refused) -> None:
        self._rows_in += 1
        self._rejects.add(
            self._file.name, member.reason, member.detail, member.member,
            line=member.number, under=self._file.name,
        )  # fmt: skip


def check_columns(columns: Any, expected: Sequence[str]) -> None:
    """Exactly the columns that params.yaml lists.

    Raises:
        RowError: `missing_column` or `extra_column`.
    """
    if missing := [name for name in expected if name not in columns]:
        raise RowError("missing_column", f"column {missing[0]!r} is not there")
    if extra := [name for name in columns if name not in expected]:
        raise RowError(
            "extra_column", f"column {quoted(extra[0])} is not one that params.yaml lists"
        )


if __name__ == "__main__":
    stage.main(run)
