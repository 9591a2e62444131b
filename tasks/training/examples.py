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

    rendered = chat.all_or_raise(chat.render_many([row["messages"] for row in rows], tokenizer))
    labels = [
        [token if keep else IGNORED for token, keep in zip(row.ids, row.mask, strict=True)]
        for row in rendered
    ]
    return Dataset.from_dict({"input_ids": [row.ids for row in rendered], "labels": labels})


def preference_pairs(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Pairs as `prompt_ids`, `chosen_ids`, `rejected_ids`, as TRL's preference collator reads them."""
    from datasets import Dataset

    prompts = chat.all_or_raise(chat.render_prompts([row["prompt"] for row in rows], tokenizer))
    columns: dict[str, list[list[int]]] = {"prompt_ids": prompts}
    for side in ("chosen", "rejected"):
        conversations = [
            [*row["prompt"], {"role": "assistant", "content": row[side]}] for row in rows
        ]
        rendered = chat.all_or_raise(chat.render_many(conversations, tokenizer))
        columns[f"{side}_ids"] = [
            conversation.ids[len(prompt) :]
            for prompt, conversation in zip(prompts, rendered, strict=True)
        ]
    return Dataset.from_dict(columns)
