"""Stage format: split without leaks, decontaminate, mix, check the chat contract."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.dataset import (
    columns,
    contamination,
    duplicates,
    hardness,
    mixing,
    plots,
    records,
    splits,
)
from tasks.dataset.columns import PREFERENCE, TEXT, Rows
from tasks.dataset.faults import RowError
from tasks.dataset.ngrams import Flags, Ints
from tasks.dataset.rejects import Rejects, account
from tasks.dataset.splits import BENCHMARK, REGRESSION, TEST, TRAINING, Plan
from tasks.lineage import stage
from tasks.lineage.console import counted, log
from tasks.lineage.stage import GateError, Metrics, Out, StageError
from tasks.lineage.tracking import log_input
from tasks.model import chat
from tasks.params import Compute, Decontamination, Format, Mix, NearDuplicates, Split

LEFT_OUT = "left out on purpose"
"""What rejects are counted under that are no fault of their source."""


def run(
    data: Path,
    base: Path,
    out: Out,
    corpus: Out,
    rejected: Out,
    settings: Format,
    compute: Compute,
) -> Metrics:
    """Split without leaks, decontaminate, mix, check the chat contract; documents go into a file of
    their own, `corpus`, so that what is trained on them alone outlives new chats."""
    log_input("validated", data, "formatting")
    tokenizer = chat.load_tokenizer(base)
    reading = columns.Reading(data, base, settings.max_tokens, settings.split.stratify_by)
    with (
        tempfile.TemporaryFile(dir=out.parent) as scratch,
        columns.read(reading, tokenizer, scratch, compute.threads) as rows,
    ):
        plan = Plan(rows.columns, near_duplicates(rows, settings.near_duplicates, compute.seed))
        log.info("test: %s", splits.hold_out(plan, settings.split, compute.seed))
        splits.leave_out_leaks(plan)
        overlap = decontaminate(rows, plan, settings.decontamination)
        splits.leave_out_copies(plan, rows.names)
        splits.choose_validation(plan, settings.split, compute.seed)
        mix(plan, settings.mix, compute.seed)

        parts = plan.splits()
        measures = hardness.measure(rows, parts)
        parts["hard_test"] = measures.hardest(settings.hard_test_share, rows.names)
        parts = {split: parts[split] for split in splits.SPLITS}
        with Rejects(rejected) as rejects, records.writing(out, splits.SPLITS) as writer:
            write(rows, plan, parts, rejects, writer)
        shutil.move(out / "corpus.jsonl", corpus)
        reasons = rejects.total()
        refuse_empty(writer.rows, reasons, settings.split)
        refuse_faults(rejects, rows.columns, settings.max_reject_share)
        write_json(out / "contract.json", chat.contract(tokenizer))
        left = overlap.shares(plan.kept, held_out(rows, plan, parts))
        write_json(out / "contamination.json", left)
        plots.write(out / "plots", rows, plan, parts, settings.max_tokens)

    repeated = int((plan.copies - 1)[plan.kept].sum())
    compared = int((plan.side == BENCHMARK).sum())
    context_alone = answers_left_out(rows, parts)
    rows_out = sum(writer.rows.values()) - writer.rows["hard_test"] - repeated + compared
    account("format", len(rows.columns), rows_out, sum(reasons.values()))
    log.info("rows: %s; rejected: %s", counted(writer.rows), counted(reasons))
    return {
        "rows_in": len(rows.columns),
        "rows_out": rows_out,
        "rows_rejected": sum(reasons.values()),
        "splits": writer.rows,
        "rejected": reasons,
        "repeated": repeated,
        "benchmark": compared,
        "clusters": plan.clusters(),
        "contaminated_share": {part: found["share"] for part, found in left.items()},
        "too_short_to_judge": len(overlap.short),
        "answers_left_out": context_alone,
        "test": measures.means(parts["test"]),
        "hard_test": measures.means(parts["hard_test"]),
        "tokens": tokens(rows, parts),
    }


def near_duplicates(rows: Rows, settings: NearDuplicates, seed: int) -> Ints:
    """The cluster of each row, named by its first row; rows that cannot be rendered are in none.

    Documents are compared whole, so memory grows by 8 bytes for each of their words.
    """
    found = rows.columns
    compared = np.ones(len(found), np.bool_)
    compared[list(found.faults)] = False
    chosen = np.flatnonzero(compared)
    partition = duplicates.clusters(columns.UserTexts(rows, chosen), settings, seed)
    cluster = np.arange(len(found))
    cluster[chosen] = chosen[partition.labels()]
    return cluster


def decontaminate(rows: Rows, plan: Plan, settings: Decontamination) -> contamination.Overlap:
    """Leave out, or only find, training rows and documents that hold a held-out row."""
    held = plan.kept & np.isin(plan.side, (TEST, REGRESSION, BENCHMARK))
    overlap = contamination.Overlap(rows.words.blocks(held, asked=True), settings)
    training = plan.kept & (plan.side == TRAINING)
    overlap.compare(rows.words.blocks(training, asked=False))
    if settings.action == "reject":
        plan.leave_out(*overlap.held(), splits.CONTAMINATED)
    return overlap


def mix(plan: Plan, settings: Mix, seed: int) -> None:
    """Weigh sources, and let general chats join."""
    mixing.weigh(plan, settings.weights, seed)
    wanted, joined = mixing.admit_general(plan, settings.general_share, seed)
    if joined < wanted:
        log.warning(
            "format.mix.general_share is %s, for which %d general chats are needed; %d are there",
            settings.general_share, wanted, joined,
        )  # fmt: skip


def write(
    rows: Rows, plan: Plan, parts: Mapping[str, Flags], rejects: Rejects, writer: records.Writer
) -> None:
    """Write every row to its split or to the reject file, in the order of the input; what is
    trained on several times comes again behind all others, in the same order."""
    places = np.full(len(rows.columns), -1, np.int8)
    for number, split in enumerate(splits.SPLITS):
        if split != "hard_test":
            places[parts[split]] = number
    where, hard = places.tolist(), parts["hard_test"].tolist()
    endings = Endings(rows.columns)
    for row, line in rows.lines():
        if where[row] >= 0:
            written = endings.added(row, line)
            writer.write_line(splits.SPLITS[where[row]], written)
            if hard[row]:
                writer.write_line("hard_test", written)
        elif error := plan.fault(row, rows.name):
            reject(rejects, rows.record(row), error)
    for copy in range(2, int(plan.copies.max(initial=1)) + 1):
        for row in np.flatnonzero((plan.copies >= copy) & plan.kept).tolist():
            writer.write_line(splits.SPLITS[where[row]], endings.added(row, rows.line(row)))


class Endings:
    """What is added to each record: the tokens of the rendered conversation, and how many of them
    are supervised."""

    def __init__(self, rows: columns.Columns) -> None:
        self._kinds = rows.kind.tolist()
        self._counts = [*rows.tokens.T.tolist(), *rows.supervised.T.tolist()]

    def added(self, row: int, line: bytes) -> bytes:
        """A record's line with its ending."""
        kind = self._kinds[row]
        if kind == TEXT:
            return line
        tokens, of_rejected, supervised, in_rejected = (counts[row] for counts in self._counts)
        text = b',"tokens":%d,"supervised":%d}\n' % (tokens, supervised)
        if kind == PREFERENCE:
            both = (tokens, of_rejected, supervised, in_rejected)
            text = b',"tokens":[%d,%d],"supervised":[%d,%d]}\n' % both
        return line.rstrip()[:-1] + text


def held_out(rows: Rows, plan: Plan, parts: Mapping[str, Flags]) -> dict[str, Flags]:
    """The rows of each split that is evaluated on, and of each source that is only compared with."""
    found = {split: parts[split] for split in ("test", "hard_test", "regression")}
    compared = plan.side == BENCHMARK
    for code, source in enumerate(rows.columns.sources):
        own = compared & (rows.columns.source == code)
        if own.any():
            found[source] = own
    return found


def answers_left_out(rows: Rows, parts: Mapping[str, Flags]) -> int:
    """Earlier answers of training rows that are not trained on."""
    training = parts["train"] | parts["preferences"]
    found = int(rows.columns.answers_left_out[training].sum())
    if found:
        log.warning(
            "%d earlier answers in training rows are context alone, since the chat template rewrites "
            "them; to train on them, take a template that keeps history (base.chat_template)",
            found,
        )
    return found


def tokens(rows: Rows, parts: Mapping[str, Flags]) -> dict[str, float]:
    """Tokens of the rendered conversations that are written; a preference pair counts as two."""
    written = np.logical_or.reduce(list(parts.values())) & (rows.columns.kind != TEXT)
    lengths = rows.columns.tokens[written]
    total = int(lengths.sum())
    return {
        "max": int(lengths.max(initial=0)),
        "mean": total / max(1, int((lengths > 0).sum())),
        "supervised_share": int(rows.columns.supervised[written].sum()) / max(1, total),
    }


def reject(rejects: Rejects, record: Mapping[str, Any], error: RowError) -> None:
    """Write a record to the reject file; what is left out on purpose is counted by itself."""
    text = records.user_text(record)
    under = LEFT_OUT if error.reason in splits.ON_PURPOSE else None
    rejects.add(record["source"], error.reason, error.detail, text, id=record["id"], under=under)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write what later stages read beside the rows."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_empty(rows: Mapping[str, int], reasons: Mapping[str, int], split: Split) -> None:
    """Nothing can be learned or shown without training and test rows.

    Raises:
        StageError: when there are none.
    """
    remedies = {
        "train": "lower format.split.test_share",
        "test": "add rows, or raise format.split.test_share",
    }
    if split.strategy == "time" and split.test_from is not None:
        remedies = {
            "train": "move format.split.test_from",
            "test": "move format.split.test_from to a day that the data reaches",
        }
    elif split.test_share is None:
        remedies = {
            "train": "add rows that share no cluster and no group with those of role test",
            "test": "mend the rows of role test",
        }
    for reason, what in (("no_time", "time"), ("no_group", "group")):
        if reason in reasons:
            remedies["train"] = f"map a {what} in ingest.sources, or take another strategy"
    if "too_long" in reasons:
        remedies = {part: f"{text}, or raise format.max_tokens" for part, text in remedies.items()}
    for part, remedy in remedies.items():
        if not rows[part]:
            found = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
            raise StageError(f"no row is left for {part}; rows rejected: {found}; {remedy}")


def refuse_faults(rejects: Rejects, rows: columns.Columns, limit: float) -> None:
    """Say no when too many rows of a source are at fault.

    Raises:
        GateError: with the sources, and the place of the complete list.
    """
    counts = np.bincount(rows.source, minlength=len(rows.sources)).tolist()
    rows_in = dict(zip(rows.sources, counts, strict=True))
    if over := rejects.over(rows_in, limit, "format.max_reject_share"):
        raise GateError("\n".join(over))


if __name__ == "__main__":
    stage.main(run)
