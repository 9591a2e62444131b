"""Prompts, and two models: the tiny Llama, and a tiny Gemma 3 whose window is shorter than they are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tasks.model.engines import Ids

WINDOW = 8


def prompts_of(lengths: list[int], count: int, shared: int = 0) -> list[Ids]:
    """Random prompts of some lengths, after `shared` tokens that all begin with."""
    generator = random.Random(0)
    beginning = [generator.randrange(6, 300) for _ in range(shared)]
    return [
        beginning + [generator.randrange(6, 300) for _ in range(generator.choice(lengths))]
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def prompts() -> list[Ids]:
    """Of which some share a length; more than a batch."""
    return prompts_of([5, 12, 13, 30], 70)


@pytest.fixture(scope="session")
def few_shot() -> list[Ids]:
    """Of which all begin alike, one with a single token of its own."""
    return prompts_of([1, 2, 3, 9, 20], 24, shared=40)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that see 8 tokens back, one that sees all; weights large enough to say something."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=128,
        eos_token_id=[1, 5],
        pad_token_id=0,
        bos_token_id=2,
    )
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(10 if "layers" in name else 3)
    folder = tmp_path_factory.mktemp("gemma") / "model"
    model.save_pretrained(folder)
    return folder
