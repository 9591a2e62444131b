"""The loss is TRL's, and so is each gradient, with less computed on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import gradients

from tasks.model import chat
from tasks.training import losses
from tasks.training.examples import IGNORED

pytest_plugins = ("small_runs",)

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def built(family: str, **changes: Any) -> Any:
    """A model of random weights large enough that its predictions differ."""
    import transformers

    config = transformers.AutoConfig.for_model(family, **{**SMALL, "head_dim": 16, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(5)
    return model


def with_adapter(model: Any, kind: str = "LoraConfig", **changes: Any) -> Any:
    import peft

    settings = {"r": 4, "target_modules": "all-linear"} if kind == "LoraConfig" else {}
    torch.manual_seed(1)
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **{**settings, **changes})
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return adapted


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    ids = torch.randint(3, 300, (3, 12))
    mask, labels = torch.ones_like(ids), ids.clone()
    for row, (prompt, length) in enumerate([(4, 12), (2, 9), (6, 7)]):
        mask[row, length:], ids[row, length:] = 0, 0
        labels[row, length:], labels[row, :prompt] = IGNORED, IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


MODELS: dict[str, Callable[[], Any]] = {
    "adapter": lambda: with_adapter(built("llama")),
    "adapter, tied head": lambda: with_adapter(built("gemma3_text", tie_word_embeddings=True)),
    "adapter on embeddings": lambda: with_adapter(built("llama"), target_modules=["embed_tokens"]),
    "embeddings trained beside an adapter": lambda: with_adapter(
        built("llama"), modules_to_save=["embed_tokens"]
    ),
    "all weights": lambda: built("llama"),
    "all weights, tied head": lambda: built("llama", tie_word_embeddings=True),
    "soft cap": lambda: built("gemma2", final_logit_softcapping=2.0, tie_word_embeddings=True),
    "scaled logits": lambda: built("granite", logits_scaling=3.0),
    "head with a bias": lambda: built("phi"),
}


@pytest.fixture(scope="module")
def trl_loss(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What TRL's SFTTrainer computes of a model and a batch."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    folder = str(tmp_path_factory.mktemp("trl"))

    def loss(model: Any, inputs: dict[str, torch.Tensor], items: int | None = None) -> Any:
        row = {"input_ids": [[3, 4, 5]], "labels": [[IGNORED, 4, 5]]}
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_length=None,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_dict(row),
            processing_class=chat.load_tokenizer(tiny_model),
        )
        return trainer.compute_loss(model, dict(inputs), num_items_in_batch=items)

    return loss


def ours(model: Any, inputs: dict[str, torch.Tensor], items: int | None = None) -> Any:
    rest = dict(inputs)
    labels = rest.pop("labels")
    if items is None:
        items = int((labels[:, 1:] != IGNORED).sum())
    return losses.supervised(model, rest, labels, items, losses.supports(model))[0]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() != set()
    assert any(bool(value.any()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_trls(
    name: str, trl_loss: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 5 * 320)  # several chunks, the last one short
    model = MODELS[name]()
    peer = copy.deepcopy(model)
    assert losses.supports(model)
    for items in (None, 40):
        mine, theirs = ours(model, batch(), items), trl_loss(peer, batch(), items)
        assert mine.item() == pytest.approx(theirs.item(), abs=1e-5)
        mine.backward()
        theirs.backward()
        assert_same(gradients(model), gradients(peer))
    model.eval()
    peer.eval()
    with torch.no_grad():
        assert float(ours(model, batch())) == pytest.approx(
            float(trl_loss(peer, batch())), abs=1e-5
        )


UNKNOWN: dict[str, Callable[[], Any]] = {
    "prompt tuning": lambda: with_adapter(
        built("llama"), "PromptTuningConfig", num_virtual_tokens=3
    ),
    "prefix tuning": lambda: with_adapter(
        built("llama"), "PrefixTuningConfig", num_virtual_tokens=3
    ),
    "adapter on the head": lambda: with_adapter(built("llama"), target_modules=["lm_head"]),
    "head trained beside an adapter": lambda: with_adapter(
        built("llama"), modules_to_save=["lm_head"]
    ),
    "a factor that no one knows": lambda: built("cohere", logit_scale=0.5),
}


def hide_factor(model: Any) -> None:
    model.config.logit_scale = None  # as if it had a name that is not in the list


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_goes_through_the_models_own_forward(name: str) -> None:
    model = UNKNOWN[name]()
    if name.startswith("a factor"):
        assert losses.supports(model)
        hide_factor(model)
    model.eval()
    assert not losses.supports(model)
    inputs = batch()
    labels = inputs.pop("labels")
    found = losses.supervised(model, inputs, labels, 10, False)[0]
    length = labels.shape[1]
    logits = model(**inputs).logits[:, -length:][:, :-1]
    expected = (
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        / 10
    )
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    found.backward()
    mine = gradients(model)
    expected.backward()
    assert_same(mine, gradients(model))


@pytest.mark.parametrize("name", ["adapter", "all weights, tied head", "soft cap"])
def test_each_token_has_its_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 5 * 320)
    model = MODELS[name]()
    inputs = batch()
    places, tokens = losses.next_tokens(inputs.pop("labels"))
    weights = torch.linspace(-1, 2, len(tokens))
    found = []
    for supported in (True, False):
        scored = losses.token_log_probs(model, inputs, places, tokens, supported)
        (scored.log_probs * weights).sum().backward()
        found.append((scored.log_probs.detach(), scored.likeliest, gradients(model)))
    (mine, top, mine_by), (own, own_top, own_by) = found
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)
    assert torch.equal(top, own_top)
    assert_same(mine_by, own_by)


def test_a_batch_without_a_supervised_token_is_zero_and_has_a_gradient() -> None:
    model = built("llama")
    inputs = batch()
    inputs["labels"].fill_(IGNORED)
    loss = ours(model, inputs)
    loss.backward()
    assert loss.item() == 0
    assert all(math.isclose(float(value.abs().sum()), 0) for value in gradients(model).values())
