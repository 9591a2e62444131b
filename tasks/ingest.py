"""Stage ingest: read every source strictly into one record schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.dataset import mapping, readers, records
from tasks.dataset.faults import RowError
from tasks.dataset.rejects import Rejects, account
from tasks.lineage import stage
from tasks.lineage.console import counted, log, progress
from tasks.lineage.stage import GateError, Metrics, Out, StageError
from tasks.lineage.tracking import log_input
from tasks.params import Ingest, Source

READERS = {".jsonl": readers.read_jsonl, ".csv": readers.read_csv}
PROGRESS_ROWS = 1000


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
            log_input(source.file, raw / source.file, source.role)
            files[source.file] = read_source(raw, source, mapper, ingest, writer, rejects)
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
    faults = []
    there = sorted(
        path.relative_to(raw).as_posix()
        for path in raw.rglob("*")
        if path.suffix in READERS and path.is_file()
    )
    names = [source.file for source in ingest.sources]
    for index, name in enumerate(names):
        key = f"params.yaml: ingest.sources[{index}].file is {name!r}"
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            faults.append(f"{key}, which leads out of {raw}; put the file there")
        elif path.suffix not in READERS:
            faults.append(f"{key}, which must end in {' or '.join(READERS)}; convert the file")
        elif not (raw / name).is_file():
            found = ", ".join(there) or "no .jsonl or .csv file"
            faults.append(f"{key}, but {raw} has no such file; it has {found}")
        elif name in names[:index]:
            faults.append(f"{key}, which an entry above reads already; drop one")
        source = ingest.sources[index]
        if source.role == "regression" and source.kind != "chat":
            faults.append(
                f"params.yaml: ingest.sources[{index}].role is 'regression', which only kind chat "
                f"can be; {source.kind} is trained on: say train"
            )
    if faults:
        raise StageError("\n".join(faults))


def read_source(
    raw: Path,
    source: Source,
    mapper: mapping.Mapper,
    ingest: Ingest,
    writer: records.Writer,
    rejects: Rejects,
) -> dict[str, Any]:
    """Read one file to its end; how many rows came in, went out and were rejected, by reason."""
    path = raw / source.file
    rows_in, out_before = 0, writer.rows[source.kind]
    seen: set[str] = set()
    if path.suffix == ".csv":
        check_header(path, source, ingest)
    rows: Iterator[readers.Row | readers.BadRow]
    rows = READERS[path.suffix](path, ingest.max_line_bytes)
    with progress(f"reading {source.file}, bytes", path.stat().st_size) as advance:
        for row in rows:
            rows_in += 1
            if rows_in % PROGRESS_ROWS == 0:
                advance(row.end, f"{rows_in} rows")
            id = None
            try:
                if isinstance(row, readers.BadRow):
                    raise RowError(row.reason, row.detail)
                if source.columns is not None:
                    check_columns(row.values.keys(), source.columns)
                record = mapper.record(row.values, f"line-{row.line:07}")
                id = record["id"]
                if id in seen:
                    raise RowError("duplicate_id", "the id comes a second time")
                seen.add(id)
                writer.write(source.kind, record)
            except RowError as fault:
                rejects.add(
                    source.file, fault.reason, fault.detail, row.raw,
                    id=id, line=row.line, byte=row.byte,
                )  # fmt: skip
    if not rows_in:
        raise StageError(f"{path} holds no rows; fill it, or remove it from ingest.sources")
    mapper.finish()
    rows_out = writer.rows[source.kind] - out_before
    account(source.file, rows_in, rows_out, rejects.count(source.file))
    reasons = rejects.by_reason(source.file)
    rejected = sum(reasons.values())
    log.info("%s: %d rows, %d rejected: %s", source.file, rows_in, rejected, counted(reasons))
    return {"rows_in": rows_in, "rows_out": rows_out, "rejected": dict(sorted(reasons.items()))}


def check_header(path: Path, source: Source, ingest: Ingest) -> None:
    """A CSV file has the same columns in every row, so a wrong one is told once.

    Raises:
        StageError: when the header is not what `columns` says.
    """
    header = readers.csv_header(path, ingest.max_line_bytes)
    if source.columns is not None and set(header) != set(source.columns):
        raise StageError(
            f"{source.file}:1: the columns are {', '.join(header)}, but params.yaml lists "
            f"{', '.join(source.columns)}; correct `columns` of this source, or the file"
        )


def check_columns(columns: Any, expected: list[str]) -> None:
    """Exactly the columns that params.yaml lists.

    Raises:
        RowError: `missing_column` or `extra_column`.
    """
    if missing := [name for name in expected if name not in columns]:
        raise RowError("missing_column", f"column {missing[0]!r} is not there")
    if extra := [name for name in columns if name not in expected]:
        raise RowError("extra_column", f"column {extra[0]!r} is not one that params.yaml lists")


if __name__ == "__main__":
    stage.main(run)
