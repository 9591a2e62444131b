"""Texts of a block are kept apart, or it is said that they are not."""

from __future__ import annotations

import pytest
import torch
import transformers

from tasks.training import causal


@pytest.mark.parametrize(
    ("family", "apart"),
    [
        (transformers.LlamaConfig, True),
        (transformers.OPTConfig, False),  # takes positions from its mask alone
    ],
)
def test_whether_texts_are_kept_apart_is_tried(family: type, apart: bool) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 80}
    sizes = {"intermediate_size": 64} if apart else {"ffn_dim": 64, "word_embed_proj_dim": 64}
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(family(**shape, **sizes, init_std=0.2))
    model.train()
    assert causal.keeps_apart(model) == apart
    assert model.training
