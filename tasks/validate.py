"""Stage validate: check rows with Great Expectations, remove personal data and contradictions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tasks.dataset import expectations, quality, records
from tasks.dataset.faults import RowError
from tasks.dataset.rejects import Rejects, account
from tasks.lineage import stage
from tasks.lineage.console import counted, log
from tasks.lineage.stage import Beside, GateError, Metrics, Out
from tasks.lineage.tracking import log_artifact, log_input
from tasks.params import Validate

SUITES = ("chat-train", "chat-regression", "preference", "text")


def run(data: Path, out: Out, rejected: Out, docs: Beside, validate: Validate) -> Metrics:
    """Check rows with Great Expectations, remove personal data and contradictions."""
    checks = quality.RowChecks(validate)
    contradictions = quality.Contradictions()
    summaries = {suite: expectations.Summary(suite, checks) for suite in SUITES}
    rows_in: dict[str, int] = {}
    suites_in = {"chat-train"}  # its number of rows is checked even when it has none

    log_input("ingested", data, "validation")
    with Rejects(rejected) as rejects, tempfile.TemporaryDirectory() as scratch:
        checked = Path(scratch) / "checked"
        with records.writing(checked) as writer:
            for kind in records.KINDS:
                rows_in[kind] = 0
                for record in records.read(data / f"{kind}.jsonl"):
                    rows_in[kind] += 1
                    suites_in.add(suite_of(kind, record))
                    try:
                        clean = checks.check(record)
                    except RowError as error:
                        reject(rejects, kind, record, error)
                        continue
                    writer.write(kind, clean)
                    if suite_of(kind, record) == "chat-train":
                        contradictions.add(clean)

        with records.writing(out) as writer:
            for kind in records.KINDS:
                for record in records.read(checked / f"{kind}.jsonl"):
                    suite = suite_of(kind, record)
                    try:
                        if suite == "chat-train" and validate.contradictions == "reject":
                            contradictions.check(record)
                    except RowError as error:
                        reject(rejects, kind, record, error)
                        continue
                    writer.write(kind, record)
                    summaries[suite].add(record)
                account(kind, rows_in[kind], writer.rows[kind], rejects.count(kind))

    evaluated = [summaries[suite] for suite in SUITES if suite in suites_in]
    findings = expectations.evaluate(evaluated, validate, docs)
    log_artifact(docs, "data_docs")
    for kind in records.KINDS:
        reasons = rejects.by_reason(kind)
        log.info("%s: %d rows, rejected: %s", kind, rows_in[kind], counted(reasons))
    failed = [finding for finding in findings if not finding.passed]
    log.info("%d expectations, %d failed; see %s", len(findings), len(failed), docs / "index.html")
    refuse(
        failed, rejects.over(rows_in, validate.max_reject_share, "validate.max_reject_share"), docs
    )
    return {
        "rows_in": sum(rows_in.values()),
        "rows_out": sum(writer.rows.values()),
        "rows_rejected": sum(rejects.total().values()),
        "kinds": {
            kind: {
                "rows_in": rows_in[kind],
                "rows_out": writer.rows[kind],
                "rejected": dict(sorted(rejects.by_reason(kind).items())),
            }
            for kind in records.KINDS
        },
        "redacted": dict(checks.redacted),
        "expectations": {"evaluated": len(findings), "successful": len(findings) - len(failed)},
    }


def suite_of(kind: str, record: Any) -> str:
    """The suite that a record belongs to."""
    return f"chat-{record['role']}" if kind == "chat" else kind


def reject(rejects: Rejects, kind: str, record: Any, error: RowError) -> None:
    """Write a record to the reject file, counted under its kind."""
    text = records.user_text(record)
    rejects.add(record["source"], error.reason, error.detail, text, id=record["id"], under=kind)


def refuse(failed: list[expectations.Finding], over: list[str], docs: Path) -> None:
    """Say no when an expectation fails or too many rows were rejected.

    Raises:
        GateError: with all that failed.
    """
    complaints = [*over, *map(str, failed)]
    if failed:
        complaints.append(f"The Data Docs say more: {docs / 'index.html'}")
    if complaints:
        raise GateError("\n".join(complaints))


if __name__ == "__main__":
    stage.main(run)
