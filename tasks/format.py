"""Stage format: drop near-duplicates and leaks, split, check the chat contract."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError

from tasks.dataset import records, splits
from tasks.dataset.contamination import Overlap
from tasks.dataset.faults import RowError
from tasks.dataset.rejects import Rejects, account
from tasks.lineage import stage
from tasks.lineage.console import counted, log
from tasks.lineage.stage import Metrics, Out, StageError
from tasks.lineage.tracking import log_input
from tasks.model import chat
from tasks.params import Compute, Format

CONVERSATIONS: tuple[Literal["chat"], Literal["preference"]] = ("chat", "preference")


def run(
    data: Path, base: Path, out: Out, rejected: Out, settings: Format, compute: Compute
) -> Metrics:
    """Drop near-duplicates and leaks, split, check the chat contract."""
    log_input("validated", data, "formatting")
    try:
        tokenizer = chat.load_tokenizer(base)
    except chat.ChatError as error:
        raise StageError(str(error)) from None
    lengths = Lengths(tokenizer, settings.max_tokens)
    rows_in = rows_of_text = 0

    with Rejects(rejected) as rejects, records.writing(out, splits.SPLITS) as writer:
        items: list[splits.Item] = []
        fits: list[bool] = []  # of every row, in the order of the files
        for kind, record in conversations(data):
            rows_in += 1
            try:
                lengths.check(record)
                items.append(splits.item(kind, record))
                fits.append(True)
            except RowError as error:
                reject(rejects, record, error)
                fits.append(False)

        plan = splits.plan(items, settings, compute.seed)
        number = 0
        for fit, (_, record) in zip(fits, conversations(data), strict=True):
            if not fit:
                continue
            place = plan.where[number]
            if isinstance(place, RowError):
                reject(rejects, record, place)
            else:
                writer.write(place, record)
                if number in plan.hard:
                    writer.write("hard_test", record)
            number += 1

        held_out = (
            (item.name, item.text)
            for item, place in zip(items, plan.where, strict=True)
            if place in ("test", "regression")
        )
        overlap = Overlap(held_out, settings.near_duplicates.threshold)
        for record in records.read(data / "text.jsonl"):
            rows_of_text += 1
            if name := overlap.find(record["text"]):
                reject(rejects, record, RowError("leak", f"holds {name}, which is held out"))
            else:
                writer.write("corpus", record)

    write_contract(out / "contract.json", chat.contract(tokenizer))
    rows_out = sum(rows for split, rows in writer.rows.items() if split != "hard_test")
    reasons = rejects.total()
    account("format", rows_in + rows_of_text, rows_out, sum(reasons.values()))
    log.info("rows: %s; rejected: %s", counted(writer.rows), counted(reasons))
    refuse_empty(writer.rows, reasons)
    return {
        "rows_in": rows_in + rows_of_text,
        "rows_out": rows_out,
        "rows_rejected": sum(reasons.values()),
        "splits": writer.rows,
        "rejected": reasons,
        "clusters": plan.clusters,
        "contaminated_share": plan.leaks / max(1, plan.training_rows),
        "hard_test_similarity": plan.hard_similarity,
        "tokens": lengths.metrics(),
    }


def conversations(data: Path) -> Iterator[tuple[Literal["chat", "preference"], Any]]:
    """The chats, then the preferences."""
    for kind in CONVERSATIONS:
        for record in records.read(data / f"{kind}.jsonl"):
            yield kind, record


class Lengths:
    """Renders conversations to see that they fit, and counts their tokens."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._rows = self._tokens = self._supervised = self._longest = 0

    def check(self, record: Mapping[str, Any]) -> None:
        """Render a record.

        Raises:
            RowError: `too_long`, `nothing_supervised` or `not_renderable`.
        """
        try:
            found = [chat.render(messages, self._tokenizer) for messages in _rendered(record)]
        except (chat.ChatError, TemplateError) as error:
            raise RowError("not_renderable", str(error)) from None
        for rendered in found:
            if len(rendered.ids) > self._max_tokens:
                detail = f"{len(rendered.ids)} tokens, more than {self._max_tokens}"
                raise RowError("too_long", detail)
            if not any(rendered.mask):
                raise RowError("nothing_supervised", "no token of it would be trained on")
        for rendered in found:
            self._rows += 1
            self._tokens += len(rendered.ids)
            self._supervised += sum(rendered.mask)
            self._longest = max(self._longest, len(rendered.ids))

    def metrics(self) -> dict[str, float]:
        """Tokens of the rendered conversations; a preference pair counts as two."""
        return {
            "max": self._longest,
            "mean": self._tokens / max(1, self._rows),
            "supervised_share": self._supervised / max(1, self._tokens),
        }


def _rendered(record: Mapping[str, Any]) -> list[list[chat.Message]]:
    if "messages" in record:
        return [record["messages"]]
    return [
        [*record["prompt"], {"role": "assistant", "content": record[answer]}]
        for answer in ("chosen", "rejected")
    ]


def reject(rejects: Rejects, record: Mapping[str, Any], error: RowError) -> None:
    """Write a record to the reject file."""
    text = records.user_text(record)
    rejects.add(record["source"], error.reason, error.detail, text, id=record["id"])


def write_contract(path: Path, contract: Mapping[str, Any]) -> None:
    """Write what must hold of the chat rendering wherever the model is used."""
    text = json.dumps(contract, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def refuse_empty(rows: Mapping[str, int], reasons: Mapping[str, int]) -> None:
    """Nothing can be learned or shown without training and test rows.

    Raises:
        StageError: when there are none.
    """
    for split, remedy in (
        ("train", "move format.split.test_from, or raise format.max_tokens"),
        ("test", "move format.split.test_from to a day that the data reaches"),
    ):
        if not rows[split]:
            found = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
            raise StageError(f"no row is left for {split}; rows rejected: {found}; {remedy}")


if __name__ == "__main__":
    stage.main(run)
