"""Adapters: saved without a trace of this machine, loaded on the model that they belong to alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import Trained

from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import adapter, chat, load, merging
from tasks.params import Sft

pytest_plugins = ("small_runs",)


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with one bit of its weights flipped."""
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    adapter.write_none(tiny_model, tmp_path / "none")
    method = adapter.checked_method(tiny_model, tmp_path / "none")
    assert method == {"method": "none", "base_sha256": hashes.sha256(tiny_model), "files": {}}


def test_an_adapter_that_was_changed_is_refused(
    sft_run: Trained, tiny_model: Path, tmp_path: Path
) -> None:
    """The reference policy of DPO is what it loads, so its first loss would not tell."""
    changed = tmp_path / "changed"
    adapter.copy(sft_run.out, changed)
    file = changed / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StageError, match=r"adapter_model\.safetensors is not what was written"):
        adapter.load_trainable(tiny_model, changed)


def test_a_tensor_that_belongs_nowhere_is_refused(
    sft_run: Trained, tiny_model: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed"
    adapter.copy(sft_run.out, renamed)
    file = renamed / "adapter_model.safetensors"
    stored = {
        name.replace("layers.0", "blocks.0"): value for name, value in load_file(file).items()
    }
    save_file(stored, file, metadata={"format": "pt"})
    (renamed / adapter.METHOD).unlink()
    adapter._write_method(renamed, "qlora", tiny_model)
    with pytest.raises(
        StageError, match=r"belong to no module of the model, the first .*blocks\.0"
    ):
        adapter.load_trainable(tiny_model, renamed)


def test_an_adapter_of_another_model_is_refused(
    sft_run: Trained, other_model: Path, tiny_model: Path
) -> None:
    mine, its = hashes.sha256(tiny_model)[:12], hashes.sha256(other_model)[:12]
    expected = (
        f"{sft_run.out} was trained on another model than {other_model} (sha256 {mine}, found {its}); "
        "run `dvc repro sft`"
    )
    for loader in (adapter.checked_method, adapter.load_trainable):
        with pytest.raises(StageError) as caught:
            loader(other_model, sft_run.out)
        assert str(caught.value) == expected


def test_a_new_adapter_trains_itself_alone_in_float32(tiny_model: Path, sft_settings: Sft) -> None:
    model = adapter.new(tiny_model, sft_settings)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    kept = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert any(name.endswith("lm_head.weight") for name in kept)


def test_a_target_that_the_model_lacks(tiny_model: Path, sft_settings: Sft) -> None:
    settings = sft_settings.model_copy(
        update={"method": "lora", "target_modules": ["q_proj", "query", "value"]}
    )
    with pytest.raises(StageError) as caught:
        adapter.new(tiny_model, settings)
    assert str(caught.value) == (
        "sft.target_modules: query, value not in this model; it has down_proj, embed_tokens, "
        "gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


def test_it_is_saved_and_loaded_to_the_bit(
    tiny_model: Path, sft_settings: Sft, tmp_path: Path
) -> None:
    settings = sft_settings.model_copy(update={"method": "lora"})
    model = adapter.new(tiny_model, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.normal_(std=0.1)
    tokenizer = chat.load_tokenizer(tiny_model)
    adapter.save(model, tokenizer, tiny_model, "lora", tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None

    again = adapter.load_trainable(tiny_model, tmp_path / "a")
    adapter.save(again, tokenizer, tiny_model, "lora", tmp_path / "b")
    assert hashes.manifest(tmp_path / "a") == hashes.manifest(tmp_path / "b")
    ids = [[5, 6, 7, 8]]
    assert merging.divergence(model, again, ids) == (0.0, 1.0)
    kl, _ = merging.divergence(load.load_model(tiny_model), again, ids)
    assert kl > 1e-6


def test_handing_on_changes_nothing(sft_run: Trained, tmp_path: Path) -> None:
    adapter.copy(sft_run.out, tmp_path / "copy")
    assert hashes.manifest(tmp_path / "copy") == hashes.manifest(sft_run.out)


def test_what_a_trainer_rounds_is_put_back(tiny_model: Path, sft_run: Trained) -> None:
    model = adapter.load_trainable(tiny_model, sft_run.out)
    exact = {name: value.clone() for name, value in model.named_parameters() if "lora_" in name}
    with adapter.kept_in_float32(model), torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data = value.data.to(torch.bfloat16)
    for name, value in model.named_parameters():
        if "lora_" in name:
            assert value.dtype == torch.float32
            assert torch.equal(value, exact[name]), name


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ("{}", "it has no 'method'"),
        ('{"method": "foo"}', "it names the method 'foo'"),
        ("[]", "list indices"),
    ],
)
def test_a_method_that_cannot_be_read(content: str | None, why: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / adapter.METHOD).write_text(content)
    with pytest.raises(StageError) as caught:
        adapter.read_method(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / adapter.METHOD} cannot be read (")
    assert why in told
    assert told.endswith(
        f"bring it again with `dvc checkout {tmp_path}`, or with `dvc repro -f` of the stage that "
        "writes it"
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("dropped", r"lacks 1 of \d+ tensors that its config names, the first .*lora_B"),
        ("no number", r"lora_B.* has weights that are not finite \(nan or infinite\)"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(
    damage: str, told: str, tiny_model: Path, sft_run: Trained, tmp_path: Path
) -> None:
    """It was written so, and its hashes hold."""
    trained = shutil.copytree(sft_run.out, tmp_path / "trained")
    file = trained / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("lora_B.weight"))
    if damage == "dropped":
        del weights[name]
    else:
        weights[name][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    (trained / adapter.METHOD).unlink()
    adapter._write_method(trained, "qlora", tiny_model)
    for read in (
        adapter.load_trainable,
        lambda *folders: merging._folded("original", None, *folders),
    ):
        with pytest.raises(StageError, match=told):
            read(tiny_model, trained)
