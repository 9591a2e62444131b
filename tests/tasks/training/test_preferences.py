"""Pairs with a shared prompt give what TRL gives for prompt and answer apart; so does each loss."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from small_runs import Trained, gradients, pairs

from tasks import dpo
from tasks.model import adapter, chat, load
from tasks.params import SMOOTHED, Compute, Dpo, DpoLoss
from tasks.training import examples, preferences

pytest_plugins = ("small_runs",)


def nudged(model: Any) -> Any:
    """Another policy than the reference."""
    with torch.no_grad():
        for number, value in enumerate(one for one in model.parameters() if one.requires_grad):
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
            value.add_(noise, alpha=0.02)
    return model


class Peers:
    """Our trainer and TRL's, of the same policy, reference and pairs."""

    def __init__(
        self, ours: Any, theirs: Any, tokenizer: Any, settings: Dpo, compute: Compute, to: Path
    ) -> None:
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        class Rendered(DPOTrainer):  # type: ignore[misc]
            def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
                return dataset

        rows = examples.preference_pairs(pairs(6), tokenizer)
        self.ours = dpo._trainer(ours, tokenizer, rows, rows, settings, compute)
        adapted = hasattr(theirs, "peft_config")
        with adapter.kept_in_float32(theirs):
            self.theirs = Rendered(
                model=theirs,
                ref_model=None if adapted else copy.deepcopy(theirs),
                args=DPOConfig(
                    output_dir=str(to),
                    max_length=None,
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    report_to="none",
                ),
                train_dataset=rows,
                processing_class=tokenizer,
            )
        own = dict(self.theirs.model.named_parameters())
        for name, value in own.items():  # TRL's copy leaves out the adapters of embeddings
            if ".ref" in name:
                value.data = own[name.replace(".ref", ".default")].data.clone()
        nudged(self.ours.model)
        nudged(self.theirs.model)

    def batch(self) -> tuple[Any, Any]:
        rows = list(self.ours.train_dataset)
        keep = ("prompt_ids", "chosen_ids", "rejected_ids")
        theirs = [{key: row[key] for key in keep} for row in rows]
        return preferences.collate(rows), self.theirs.data_collator(theirs)


@pytest.fixture(scope="module", params=["adapter", "all weights"])
def peers(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    lively_model: Path,
    sft_run: Trained,
    dpo_settings: Dpo,
    settled: Compute,
    tmp_path_factory: pytest.TempPathFactory,
) -> Peers:
    tokenizer = chat.load_tokenizer(tiny_model)
    if request.param == "adapter":
        models = [adapter.load_trainable(tiny_model, sft_run.out) for _ in range(2)]
    else:
        models = [load.load_model(lively_model) for _ in range(2)]
    to = tmp_path_factory.mktemp("trl")
    return Peers(*models, tokenizer, dpo_settings, settled, to)


@pytest.mark.parametrize("name", get_args(DpoLoss))
def test_loss_and_gradients_are_trls(name: str, peers: Peers, dpo_settings: Dpo) -> None:
    smoothing = 0.1 if name in SMOOTHED else 0.0
    peers.ours.settings = dpo_settings.model_copy(
        update={"loss": name, "label_smoothing": smoothing, "beta": 0.5}
    )
    peers.theirs.loss_types, peers.theirs.loss_weights = [name], [1.0]
    peers.theirs.label_smoothing, peers.theirs.beta = smoothing, 0.5
    ours, theirs = peers.batch()
    found = peers.ours.compute_loss(peers.ours.model, ours)
    expected = peers.theirs.compute_loss(peers.theirs.model, theirs)
    # The squares of sppo_hard are large; sums of log-probabilities in float32 have seven digits.
    assert found.item() == pytest.approx(expected.item(), abs=1e-5, rel=5e-6)
    found.backward()
    expected.backward()
    mine, others = gradients(peers.ours.model), gradients(peers.theirs.model)
    assert mine.keys() == {key for key in others if ".ref" not in key} != set()
    for key, value in mine.items():
        near = 1e-5 * max(1.0, float(others[key].abs().max()))
        torch.testing.assert_close(value, others[key], rtol=1e-4, atol=near, msg=key)
    peers.ours.model.eval()
    peers.theirs.model.eval()
    with torch.no_grad():
        loss, _, _ = peers.ours.prediction_step(peers.ours.model, ours, True)
        other = peers.theirs.compute_loss(peers.theirs.model, theirs)
    assert loss.item() == pytest.approx(other.item(), abs=1e-5, rel=5e-6)
    peers.ours.model.train()
    peers.theirs.model.train()


def test_the_reference_is_trls(peers: Peers) -> None:
    ours, theirs = peers.batch()
    model = peers.theirs.ref_model or peers.theirs.model
    expected = peers.theirs.compute_ref_log_probs(model, theirs)
    torch.testing.assert_close(ours["reference"], torch.stack(expected, 1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", get_args(DpoLoss))
def test_the_first_loss_is_that_of_a_margin_of_zero(name: str, dpo_settings: Dpo) -> None:
    smoothing = 0.1 if name in SMOOTHED else 0.0
    settings = dpo_settings.model_copy(update={"loss": name, "label_smoothing": smoothing})
    expected = {
        "hinge": 1.0, "ipo": 25.0, "nca_pair": 2 * math.log(2), "bco_pair": 2 * math.log(2),
        "sppo_hard": 50.0, "apo_zero": 1.0, "apo_down": 1.0, "sft": None,
        "discopop": math.log(2) / 2 + 0.5, "exo_pair": math.log(0.5) - math.log(0.1 * 0.9) / 2,
    }.get(name, math.log(2))  # fmt: skip
    found = preferences.first_loss(settings)
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-5))


FAMILIES = {
    "one kind of layer": ("llama", {}),
    "a window in some layers": (
        "gemma3_text",
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "a window in all layers": ("mistral", {"sliding_window": 4}),
    "attention written out": ("llama", {"attn_implementation": "eager"}),
}


def small(family: str, **changes: Any) -> Any:
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        **{key: value for key, value in changes.items() if key != "attn_implementation"},
    )
    torch.manual_seed(0)
    attention = changes.get("attn_implementation", "sdpa")
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def some_pairs() -> dict[str, torch.Tensor]:
    rows = []
    for prompt, chosen, rejected in [(9, 3, 7), (1, 5, 1), (4, 1, 2)]:
        ids = [(prompt + 7 * at) % 60 + 2 for at in range(prompt + chosen + rejected)]
        rows.append(
            {
                "prompt_ids": ids[:prompt],
                "chosen_ids": ids[prompt : prompt + chosen],
                "rejected_ids": ids[prompt + chosen :],
            }
        )
    return preferences.collate(rows)


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_answer_is_scored_as_if_alone(kind: str) -> None:
    family, changes = FAMILIES[kind]
    model = small(family, **changes)
    assert preferences.Scorer.of(model) == preferences.Scorer(model, True, True)
    found = []
    for shared in (True, False):
        answers, tokens = preferences.Scorer(model, True, shared).answers(some_pairs())
        answers.sum().backward()
        found.append((answers.detach(), gradients(model)))
        assert tokens.tolist() == [[3, 7], [5, 1], [1, 2]]
    (together, by_together), (apart, by_apart) = found
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    for key, value in by_apart.items():
        torch.testing.assert_close(by_together[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_a_model_that_cannot_share_a_prompt_computes_it_twice() -> None:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    learned = get_peft_model(small("llama"), config)
    assert preferences.Scorer.of(learned) == preferences.Scorer(learned, False, False)
    answers, _ = preferences.Scorer.of(learned).answers(some_pairs())
    answers.sum().backward()
    assert set(gradients(learned)) == {"prompt_encoder.default.embedding.weight"}

    state_space = transformers.AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4
    )
    recurrent = transformers.AutoModelForCausalLM.from_config(state_space)
    assert not preferences.Scorer.of(recurrent).shared
