"""Token ids for the three trainers; all conversations go through `tasks.model.chat`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage.stage import StageError
from tasks.model import chat

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""The label of a token that carries no loss."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of data/formatted.

    Raises:
        StageError: when it holds none; training on nothing is never meant.
    """
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if not rows:
        raise StageError(
            f"{path} holds no rows; see models/format.metrics.json for where they went, "
            "or switch this stage off in params.yaml"
        )
    return rows


def packed_blocks(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, block_tokens: int
) -> Dataset:
    """Texts one after the other, an end-of-text token behind each, cut into equal blocks.

    Returns:
        rows of `input_ids` and `labels`, both of `block_tokens`; a last, shorter block is left out
        unless it is the only one.
    """
    from datasets import Dataset

    stream: list[int] = []
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False)["input_ids"]
        stream.append(tokenizer.eos_token_id)
    size = min(block_tokens, len(stream))
    blocks = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks})


def supervised_chats(rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Conversations as `input_ids`, and `labels` that hold the assistant's tokens alone."""
    from datasets import Dataset

    rendered = [chat.render(row["messages"], tokenizer) for row in rows]
    labels = [
        [token if keep else IGNORED for token, keep in zip(row.ids, row.mask, strict=True)]
        for row in rendered
    ]
    return Dataset.from_dict({"input_ids": [row.ids for row in rendered], "labels": labels})


def preference_pairs(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Pairs as `prompt_ids`, `chosen_ids`, `rejected_ids`, as TRL's preference collator reads them."""
    from datasets import Dataset

    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for row in rows:
        prompt = chat.render_prompt(row["prompt"], tokenizer)
        columns["prompt_ids"].append(prompt)
        for side in ("chosen", "rejected"):
            answer: chat.Message = {"role": "assistant", "content": row[side]}
            ids = chat.render([*row["prompt"], answer], tokenizer).ids
            if ids[: len(prompt)] != prompt:
                raise StageError(
                    f"preference {row['id']}: the {side} answer changes how its prompt is tokenised; "
                    "let the template end the prompt with a special token (base.chat_template)"
                )
            columns[f"{side}_ids"].append(ids[len(prompt) :])
    return Dataset.from_dict(columns)
