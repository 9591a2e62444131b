"""What the trainers are fed: every token of a text, and of a conversation the answers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import chats, pairs, write_rows
from transformers import PreTrainedTokenizerFast

from tasks.lineage.stage import StageError
from tasks.model import chat
from tasks.training import examples

pytest_plugins = ("small_runs",)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    return chat.load_tokenizer(tiny_model)


def test_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "Grüße\u2028next"}, {"text": "b"}])
    assert examples.read_rows(tmp_path / "rows.jsonl") == [
        {"text": "Grüße\u2028next"},
        {"text": "b"},
    ]


def test_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.touch()
    with pytest.raises(StageError) as caught:
        examples.read_rows(file)
    assert str(caught.value) == (
        f"{file} holds no rows; see models/format.metrics.json for where they went, or switch this "
        "stage off in params.yaml"
    )


def test_packed_blocks_hold_every_token_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["the truck is late", "held by customs", "two pallets arrived damaged, please advise"]
    stream = [
        token
        for text in texts
        for token in [
            *tokenizer(text, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
    ]
    blocks = examples.packed_blocks(texts, tokenizer, 8)
    assert blocks.num_rows == len(stream) // 8 > 1
    packed = [token for block in blocks["input_ids"] for token in block]
    assert packed == stream[: blocks.num_rows * 8]  # the short rest is left out
    assert {len(block) for block in blocks["input_ids"]} == {8}
    assert blocks["labels"][:] == blocks["input_ids"][:]


def test_a_text_that_fills_no_block_is_one(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("late", add_special_tokens=False)["input_ids"]
    blocks = examples.packed_blocks(["late"], tokenizer, 512)
    assert blocks["input_ids"][:] == [[*ids, tokenizer.eos_token_id]]


def test_labels_are_the_answer_and_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = chats(3)
    found = examples.supervised_chats(rows, tokenizer)
    for row, ids, labels in zip(rows, found["input_ids"], found["labels"], strict=True):
        answer = row["messages"][-1]["content"]
        kept = [label for label in labels if label != examples.IGNORED]
        assert tokenizer.decode(kept) == answer + tokenizer.eos_token
        assert len(labels) == len(ids)
        assert ids[-len(kept) :] == kept  # each in its place
        assert set(labels[: -len(kept)]) == {examples.IGNORED}


def test_pairs_share_their_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pairs(3)
    found = examples.preference_pairs(rows, tokenizer)
    assert found.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    for row, pair in zip(rows, found, strict=True):
        assert pair["prompt_ids"] == chat.render_prompt(row["prompt"], tokenizer)
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(pair[f"{side}_ids"]) == row[side] + tokenizer.eos_token
