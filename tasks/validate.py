"""Stage validate: check rows with Great Expectations, remove personal data and contradictions."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tasks.dataset import checklist, contradictions, expectations, privacy, records, sieve
from tasks.dataset.rejects import Rejects, account
from tasks.lineage import stage
from tasks.lineage.console import counted, log, progress
from tasks.lineage.stage import Beside, GateError, Metrics, Out
from tasks.lineage.tracking import log_artifact, log_input
from tasks.params import Validate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def run(
    data: Path, base: Path, out: Out, rejected: Out, docs: Beside, validate: Validate
) -> Metrics:
    """Check rows with Great Expectations, remove personal data and contradictions."""
    log_input("ingested", data, "validation")
    expectations.import_beside()
    with Rejects(rejected) as rejects:
        kept = sift(data, out, rejects, validate)
        train, chats = kept.train(), kept.columns("chat")
        clashes = contradictions.find(chats["prompt"][train], chats["answer"][train])
        if validate.contradictions == "reject" and len(clashes.rows):
            drop(train[clashes.rows], train[clashes.others], kept, out / "chat.jsonl", rejects)
    for kind in records.KINDS:
        account(kind, kept.rows_in[kind], kept.rows_out(kind), rejects.count(kind))
        reasons = rejects.by_reason(kind)
        log.info("%s: %d rows, rejected: %s", kind, kept.rows_in[kind], counted(reasons))

    scores = judge(kept, clashes, out / "chat.jsonl", base, validate)
    for score in scores:
        log.info("quality: %s", score)
    warning = checklist.volume(len(kept.train()))
    if warning:
        log.warning("%s", warning)
    findings = expectations.evaluate(
        kept.tables(), kept.reject_shares(), scores, warning, validate, docs
    )
    log_artifact(docs, "data_docs")
    failed = [finding for finding in findings if not finding.passed]
    log.info("%d expectations, %d failed; see %s", len(findings), len(failed), docs / "index.html")
    over = rejects.over(kept.rows_in, validate.max_reject_share, "validate.max_reject_share")
    if failed:
        rejects.keep()  # what is rejected is a stage's output, and goes when the stage fails
    refuse(failed, over, docs)
    return {
        "rows_in": sum(kept.rows_in.values()),
        "rows_out": sum(kept.rows_out(kind) for kind in records.KINDS),
        "rows_rejected": sum(rejects.total().values()),
        "kinds": {
            kind: {
                "rows_in": kept.rows_in[kind],
                "rows_out": kept.rows_out(kind),
                "rejected": dict(sorted(rejects.by_reason(kind).items())),
            }
            for kind in records.KINDS
        },
        "redacted": {kind: kept.redacted[kind] for kind in privacy.KINDS},
        "quality": {score.name: score.value for score in scores} | {"warnings": int(bool(warning))},
        "expectations": {"evaluated": len(findings), "successful": len(findings) - len(failed)},
    }


def sift(data: Path, out: Path, rejects: Rejects, validate: Validate) -> sieve.Kept:
    """Write what goes on of every record file, and what is rejected."""
    kept = sieve.Kept()
    out.mkdir(parents=True)
    for kind in records.KINDS:
        (out / f"{kind}.jsonl").touch()
    total = sum(path.stat().st_size for path in data.glob("*.jsonl"))
    with progress("checking records, bytes", total) as advance:
        done = 0
        for sifted in sieve.sift(data, validate):
            kept.add(sifted)
            kind = sifted.part.kind
            with (out / f"{kind}.jsonl").open("ab") as file:
                file.writelines(sifted.clean())
            for row in sifted.rejected:
                rejects.add(
                    row.source, row.reason, row.detail, row.text, id=row.id, under=kind
                )  # fmt: skip
            done += sifted.part.end - sifted.part.start
            advance(done, f"{sum(kept.rows_in.values())} rows")
    return kept


def drop(
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    kept: sieve.Kept,
    path: Path,
    rejects: Rejects,
) -> None:
    """Reject contradicting lines of chat.jsonl: write the file again without them.

    Args:
        rows: numbers of the lines, rising; `others`: of a line that each of them contradicts.
    """
    import numpy as np

    ends = np.cumsum(kept.columns("chat")["bytes"], dtype=np.int64)
    starts = ends - kept.columns("chat")["bytes"]
    partial = path.with_suffix(".partial")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines,
        partial.open("wb") as copy,
    ):
        last = 0
        for row, other in zip(rows.tolist(), others.tolist(), strict=True):
            copy.write(lines[last : starts[row]])
            last = int(ends[row])
            record = orjson.loads(lines[starts[row] : last])
            name = orjson.loads(lines[starts[other] : ends[other]])["id"]
            detail = f"{name} has the same prompt and another answer"
            text = records.user_text(record)
            rejects.add(
                record["source"], "contradiction", detail, text, id=record["id"], under="chat"
            )
        while piece := lines[last : last + sieve.PART_BYTES]:
            copy.write(piece)
            last += len(piece)
    partial.replace(path)
    kept.drop_chats(rows)


def judge(
    kept: sieve.Kept,
    clashes: contradictions.Contradictions,
    path: Path,
    base: Path,
    validate: Validate,
) -> list[checklist.Score]:
    """The scores of the quality checklist, over the train chats that go out."""
    chats, train = kept.columns("chat"), kept.train()
    sample = sample_of(path, chats, train)
    prompts = [records.user_text(record) for record in sample]
    whole = ["\n".join(turn["content"] for turn in record["messages"]) for record in sample]
    values = {
        "consistency": checklist.consistency(
            kept.valid, kept.judged, chats["shape"][train], validate.answer_schema is not None
        ),
        "contradictions": checklist.contradictions(clashes.prompts, clashes.contradicted),
        "class_balance": checklist.class_balance(chats["answer"][train]),
        "distinct_words": checklist.distinct_words(prompts),
        "clusters": checklist.clusters(prompts),
        "length": checklist.length(whole, base),
    }
    limits = validate.min_score.model_dump()
    return [checklist.Score(name, value, limits[name]) for name, value in values.items()]


def sample_of(path: Path, chats: sieve.Columns, train: NDArray[np.int64]) -> list[Any]:
    """Of the train chats the checklist.SAMPLE with the lowest digests of source and id: as good as
    drawn at random, and the same whatever the order of the rows."""
    import numpy as np

    digests = chats["row"][train]
    size = min(checklist.SAMPLE, len(train))
    drawn = np.sort(train[np.argsort(digests, kind="stable")[:size]])
    ends = np.cumsum(chats["bytes"], dtype=np.int64)
    found = []
    with path.open("rb") as file:
        for row in drawn.tolist():
            file.seek(int(ends[row] - chats["bytes"][row]))
            found.append(orjson.loads(file.read(int(chats["bytes"][row]))))
    return found


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
