"""Merging: the folded model is the trained one, and an adapter that did not arrive is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import Trained
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import adapter, chat, load, merging, source
from tasks.params import Sft
from tasks.training import beforehand

pytest_plugins = ("small_runs",)

PROMPTS = [[5, 6, 7, 8, 9], list(range(20, 60))]


def logits(model: object, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]  # type: ignore[operator]


def merged_into(base: Path, trained: Path, out: Path) -> merging.Merged:
    return merging.merge(merging.load_unmerged(base, trained), base, trained, out, PROMPTS)


def save(model: object, base: Path, method: str, out: Path) -> None:
    adapter.save(model, chat.load_tokenizer(base), base, method, out)


def largest_difference(model: object, other: object) -> float:
    return max(float((logits(model, ids) - logits(other, ids)).abs().max()) for ids in PROMPTS)


def test_the_merged_model_answers_as_the_trained_one(
    dpo_run: Trained, tiny_model: Path, tmp_path: Path
) -> None:
    made = merged_into(tiny_model, dpo_run.out, tmp_path / "merged")
    assert made.into == "nf4"
    assert made.compared["nf4"][0] < 1e-6 < made.compared["original"][0]
    trained = merging.load_unmerged(tiny_model, dpo_run.out)
    merged = load.load_model(tmp_path / "merged")
    assert largest_difference(trained, merged) < 1e-4
    assert largest_difference(load.load_model(tiny_model), merged) > 1e-2  # training did something
    assert chat.contract(chat.load_tokenizer(tmp_path / "merged")) == chat.contract(
        chat.load_tokenizer(tiny_model)
    )
    assert (tmp_path / "merged/manifest.json").is_file()


def test_merging_again_gives_the_same_bytes(
    dpo_run: Trained, tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        merged_into(tiny_model, dpo_run.out, tmp_path / name)
    assert hashes.manifest(tmp_path / "one") == hashes.manifest(tmp_path / "two")


def test_without_adapter_the_weights_stay(tiny_model: Path, tmp_path: Path) -> None:
    adapter.write_none(tiny_model, tmp_path / "none")
    merged_into(tiny_model, tmp_path / "none", tmp_path / "merged")
    merged = load.load_model(tmp_path / "merged")
    assert largest_difference(merging.load_unmerged(tiny_model, tmp_path / "none"), merged) == 0
    assert largest_difference(load.load_model(tiny_model), merged) == 0


def test_lora_is_folded_into_the_weights_as_they_are(
    tiny_model: Path, sft_settings: Sft, tmp_path: Path
) -> None:
    settings = sft_settings.model_copy(update={"method": "lora", "target_modules": "all-linear"})
    model = adapter.new(tiny_model, settings)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.normal_(std=0.1)
    save(model, tiny_model, "lora", tmp_path / "lora")
    merged_into(tiny_model, tmp_path / "lora", tmp_path / "merged")
    assert largest_difference(model, load.load_model(tmp_path / "merged")) < 1e-4


def test_an_adapter_of_zeros_is_refused(
    tiny_model: Path, sft_settings: Sft, tmp_path: Path
) -> None:
    untrained = adapter.new(tiny_model, sft_settings)
    save(untrained, tiny_model, "qlora", tmp_path / "zero")
    with pytest.raises(StageError) as caught:
        merged_into(tiny_model, tmp_path / "zero", tmp_path / "merged")
    assert str(caught.value) == (
        f"{tmp_path / 'zero'} changes nothing: it was never trained; run `dvc repro -f sft`"
    )


def test_a_fold_that_leaves_a_layer_out_is_refused(
    tiny_model: Path, sft_run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's share of the answers may be small: its weights are looked at."""
    from peft.tuners.lora.layer import Linear

    merge = Linear.merge

    def but_one(self: Any, *arguments: Any, **named: Any) -> None:
        if self.in_features == self.out_features and not left_out:
            left_out.append(self)
        else:
            merge(self, *arguments, **named)

    left_out: list[Any] = []
    monkeypatch.setattr(Linear, "merge", but_one)
    with pytest.raises(
        StageError, match=r"layers\.0\.self_attn\.\w+ did not arrive in its weights"
    ):
        merging._fold(load.load_model(tiny_model), sft_run.out)
    assert left_out


def test_without_test_rows_there_is_nothing_to_compare_on(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(
        StageError, match=r"test\.jsonl holds no rows, and what is merged is compared with what was"
    ):
        merging.fixed_conversations(tmp_path, tiny_model)


@pytest.mark.parametrize("share", ["all", "one"])
def test_an_adapter_whose_names_match_no_module_is_refused(
    share: str, dpo_run: Trained, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(dpo_run.out, tmp_path / "renamed")
    weights = load_file(folder / "adapter_model.safetensors")
    chosen = [name for name in weights if share == "all" or "layers.1.mlp.up_proj.lora_B" in name]
    renamed = {
        name.replace("base_model.", "base.") if name in chosen else name: value
        for name, value in weights.items()
    }
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / adapter.METHOD).unlink()
    adapter._write_method(folder, "qlora", tiny_model)
    with pytest.raises(StageError) as caught:
        merged_into(tiny_model, folder, tmp_path / "merged")
    assert str(caught.value) == (
        f"{len(chosen)} of {len(weights)} tensors of {folder} belong to no module of the model, the "
        f"first {sorted(set(renamed) - set(weights))[0]}; run `dvc repro -f sft`"
    )


def test_an_adapter_of_embeddings_alone_merges(
    tiny_model: Path, sft_settings: Sft, tmp_path: Path
) -> None:
    settings = sft_settings.model_copy(
        update={"method": "lora", "target_modules": ["embed_tokens"]}
    )
    model = adapter.new(tiny_model, settings)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.normal_(std=0.1)
    save(model, tiny_model, "lora", tmp_path / "lora")
    merged_into(tiny_model, tmp_path / "lora", tmp_path / "merged")
    assert largest_difference(model, load.load_model(tmp_path / "merged")) < 1e-4


@pytest.fixture(scope="module")
def gpt2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose linear layers are of a kind of their own, with transposed weights."""
    tokenizer, folder = chat.load_tokenizer(tiny_model), tmp_path_factory.mktemp("gpt2") / "model"
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=2, n_positions=512)
    torch.manual_seed(0)
    source.save(GPT2LMHeadModel(config), tokenizer, folder)
    source.write_manifest(folder)
    return folder


@pytest.mark.parametrize("targets", ["all-linear", ["c_attn", "c_fc"]], ids=["all", "named"])
@pytest.mark.parametrize("method", ["lora", "qlora", "dora", "adalora", "ia3"])
def test_layers_of_gpt2_are_adapted_and_folded(
    method: str, targets: str | list[str], gpt2: Path, sft_settings: Sft, tmp_path: Path
) -> None:
    beforehand.check_targets(gpt2, targets, "sft.target_modules")
    chosen = {"method": method, "target_modules": targets, "lora_dropout": 0.0}
    model = adapter.new(gpt2, sft_settings.model_copy(update=chosen))
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.1)
    names = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert names == ({"c_attn", "c_proj", "c_fc"} if targets == "all-linear" else set(targets))
    save(model, gpt2, method, tmp_path / "trained")
    made = merged_into(gpt2, tmp_path / "trained", tmp_path / "merged")
    assert made.into == ("nf4" if method == "qlora" else "original")
    merged = load.load_model(tmp_path / "merged")
    assert largest_difference(model, merged) < 1e-4
    assert largest_difference(load.load_model(gpt2), merged) > 1e-3


class Fixed:
    """A model whose next-token probabilities are given."""

    def __init__(self, *probabilities: float) -> None:
        self.logits = torch.tensor(probabilities).log()

    def __call__(self, input_ids: torch.Tensor) -> Fixed:
        shown = Fixed()
        shown.logits = self.logits.expand(1, input_ids.shape[1], -1)
        return shown


def test_what_is_no_number_diverges() -> None:
    broken = Fixed(0.25, math.nan)
    for pair in ((Fixed(0.25, 0.75), broken), (broken, Fixed(0.25, 0.75)), (broken, broken)):
        assert merging.divergence(*pair, [[1, 1]])[0] == math.inf


def test_divergence_is_the_mean_kl_in_nats() -> None:
    kl, same = merging.divergence(Fixed(0.5, 0.5), Fixed(0.25, 0.75), [[1, 2], [3]])
    assert kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    kl, same = merging.divergence(Fixed(0.7, 0.3), Fixed(0.3, 0.7), [[1]])
    assert kl == pytest.approx(0.7 * math.log(7 / 3) + 0.3 * math.log(3 / 7), rel=1e-6)
    assert same == 0.0
    assert merging.divergence(Fixed(0.7, 0.3), Fixed(0.7, 0.3), [[1]]) == (0.0, 1.0)
