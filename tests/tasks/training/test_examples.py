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


@pytest.mark.parametrize("line", ['{"text": "cut', "", "[1]", '"text"'])
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(StageError) as caught:
        examples.read_rows(file)
    assert str(caught.value).startswith(f"{file}:2: is no row as `format` writes it (")


def test_texts_that_are_all_empty(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        StageError, match="every text to learn from is empty; give others, or switch"
    ):
        examples.packed_blocks(["", ""], tokenizer, 8)
    assert len(examples.packed_blocks(["", "a"], tokenizer, 8)) == 1


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
    starts = [0, *(at + 1 for at, token in enumerate(packed) if token == tokenizer.eos_token_id)]
    for row, block in enumerate(blocks):
        for at, (label, position) in enumerate(
            zip(block["labels"], block["position_ids"], strict=True)
        ):
            begins = at == 0 or row * 8 + at in starts  # of a text, or of what the block has of it
            assert label == (examples.IGNORED if begins else block["input_ids"][at])
            assert position == (0 if begins else block["position_ids"][at - 1] + 1)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_packed_text_is_read_as_if_alone(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    texts = ["the truck is late", "held by customs", "two pallets arrived damaged, please advise"]
    block = examples.packed_blocks(texts, tokenizer, 512)[0]
    start = 0
    with torch.no_grad():
        packed = model(
            input_ids=torch.tensor([block["input_ids"]]),
            position_ids=torch.tensor([block["position_ids"]]),
            use_cache=False,
        ).logits[0]
        for text in texts:
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            torch.testing.assert_close(
                packed[start : start + len(ids)], alone, rtol=1e-5, atol=1e-5
            )
            start += len(ids)


def test_a_text_begins_as_a_conversation_does(tiny_model: Path) -> None:
    """Of tokenizers that put a token before each text, as Gemma's, templates write the same one."""
    from tokenizers.processors import TemplateProcessing

    def texts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
        [block] = examples.packed_blocks(["late", "customs"], tokenizer, 512)["input_ids"]
        end = block.index(tokenizer.eos_token_id) + 1
        return [block[:end], block[end:]]

    tokenizer = chat.load_tokenizer(tiny_model)
    plain = texts(tokenizer)
    begin = tokenizer.bos_token_id
    assert begin not in [*plain[0], *plain[1]]  # the scratch model's own puts none
    token = str(tokenizer.bos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, begin)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    assert texts(tokenizer) == [[begin, *text] for text in plain]
    assert chat.render_prompt([{"role": "user", "content": "late"}], tokenizer)[0] == begin
    block = examples.packed_blocks(["late"], tokenizer, 512)[0]
    assert block["position_ids"][0] == 0
    assert block["labels"] == [examples.IGNORED, *plain[0]]  # it is not learned, but learned from


def test_a_text_that_fills_no_block_is_one(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("late", add_special_tokens=False)["input_ids"]
    blocks = examples.packed_blocks(["late"], tokenizer, 512)
    assert blocks["input_ids"][:] == [[*ids, tokenizer.eos_token_id]]
    assert blocks["position_ids"][:] == [list(range(len(ids) + 1))]


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
    assert found.column_names == ["prompt_ids", "chosen_ids", "rejected_ids", "length"]
    for row, pair in zip(rows, found, strict=True):
        assert pair["prompt_ids"] == chat.render_prompt(row["prompt"], tokenizer)
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(pair[f"{side}_ids"]) == row[side] + tokenizer.eos_token
