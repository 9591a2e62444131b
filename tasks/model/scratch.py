"""A tiny Llama and its tokenizer, built from text: enough to try everything without a download."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.params import Scratch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
# Plain lines, as the text that it is pretrained on has them: a model this small has no use for role
# tokens that it never met.
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)


def build_tokenizer(text: Iterable[str], settings: Scratch) -> PreTrainedTokenizerFast:
    """A byte-level BPE that loses nothing: any text, decoded again, is the same text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=settings.context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


# Words with the space before them, digits one by one, runs of punctuation, white space.
_WORDS = r"'(?i:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Scratch) -> LlamaForCausalLM:
    """A Llama with random weights in float32; seed before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,  # so that an adapter on the embeddings merges as it was trained
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def read_rows(raw: Path, names: Iterable[str]) -> list[dict[str, str]]:
    """The rows of JSONL files, text values alone.  Faulty lines are left out: `ingest` reports them."""
    rows = []
    for name in names:
        for line in (raw / name).read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append({key: text for key, text in row.items() if isinstance(text, str)})
    return rows


def as_text(row: dict[str, str], tokenizer: PreTrainedTokenizerFast) -> str:
    """A row to pretrain on: a conversation where it has an instruction, so that the model meets the
    template, else its text."""
    if "instruction" in row:
        turns = [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
        return text.removesuffix(END)  # packing puts one behind each text
    return plain(row)


def plain(row: dict[str, str]) -> str:
    """The text of a row, without its id."""
    return "\n\n".join(text for key, text in row.items() if key != "id")
