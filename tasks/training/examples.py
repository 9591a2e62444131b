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
    """The rows of a file that `format` wrote.

    Raises:
        StageError: when it holds none, since training on nothing is never meant, or a line is no row.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise StageError(
                    f"{path}:{number}: is no row as `format` writes it ({error}); bring the file again "
                    "with `dvc checkout data/formatted`, or `dvc repro -f format`"
                ) from None
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

    A text begins with what the tokenizer puts before one by itself: Gemma and Llama have a token for it,
    which their chat templates write too, Qwen and the scratch model have none.

    Positions begin anew with each text and each block.  Without an attention mask transformers takes
    that for a border (`find_packed_sequence_indices` in its masking_utils): no text sees the one before
    it.  Nor is the first token of a text predicted from another text.

    Returns:
        rows of `input_ids`, `position_ids` and `labels`, each of `block_tokens`; a last, shorter block
        is left out unless it is the only one.

    Raises:
        StageError: when every text is empty.
    """
    from datasets import Dataset

    begin = _opening(tokenizer)
    tokens: list[int] = []
    places: list[int] = []
    anything = False
    for text in texts:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*begin, *plain, tokenizer.eos_token_id]
        anything |= bool(plain)
        tokens += ids
        places += range(len(ids))
    if not anything:
        raise StageError("every text to learn from is empty; give others, or switch this stage off")
    size = min(block_tokens, len(tokens))
    columns: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
    for start in range(0, len(tokens) - size + 1, size):
        block = tokens[start : start + size]
        positions = _from_zero(places[start : start + size])
        columns["input_ids"].append(block)
        columns["position_ids"].append(positions)
        columns["labels"].append(
            [token if place else IGNORED for token, place in zip(block, positions, strict=True)]
        )
    return Dataset.from_dict(columns)


def _opening(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What a tokenizer puts before a text by itself."""
    whole, plain = (
        tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False)
    )
    ahead = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return list(whole[:ahead])


def _from_zero(places: list[int]) -> list[int]:
    """A text that a block continues begins anew: the block does not have what came before."""
    cut = next((at for at, place in enumerate(places) if place == 0), len(places))
    return [*range(cut), *places[cut:]]


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
    """Pairs as `prompt_ids`, `chosen_ids`, `rejected_ids`, and their `length` together."""
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
    lengths = [sum(map(len, parts)) for parts in zip(*columns.values(), strict=True)]
    return Dataset.from_dict({**columns, "length": lengths})
