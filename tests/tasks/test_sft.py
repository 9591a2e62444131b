"""Supervised fine-tuning: a complete adapter comes out, the same twice, for each method."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from small_runs import Trained, machine_names, write_rows

from tasks import sft
from tasks.lineage import chosen, hashes
from tasks.lineage.stage import StageError
from tasks.model import adapter
from tasks.params import Compute, Sft

pytest_plugins = ("small_runs",)


def test_what_is_written(sft_run: Trained, tiny_model: Path) -> None:
    assert {path.name for path in sft_run.out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "handoff.json",
        "method.json",
    }
    files = hashes.manifest(sft_run.out)
    del files["method.json"]
    assert json.loads((sft_run.out / "method.json").read_text()) == {
        "method": "qlora",
        "base_sha256": hashes.sha256(tiny_model),
        "files": files,
    }
    config = json.loads((sft_run.out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert machine_names(sft_run.out.parent, sft_run.out.parent, tiny_model) == []


def test_what_is_measured(sft_run: Trained) -> None:
    with sft_run.curve.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:2] == ["step", "loss"]
    assert sft_run.metrics["rows"] == 8
    assert sft_run.metrics["steps"] == len(rows) == 4  # 2 epochs of 8 rows, 4 a step
    assert float(rows[-1]["loss"]) == sft_run.metrics["loss_last"] < sft_run.metrics["loss_first"]
    assert math.isfinite(sft_run.metrics["validation_loss"])


def test_every_weight_is_float32(sft_run: Trained) -> None:
    from safetensors.torch import load_file

    weights = load_file(sft_run.out / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert any("embed_tokens" in name for name in weights)
    assert all(bool(weight.any()) for weight in weights.values())  # each learned


def test_the_same_bytes_twice(
    sft_run: Trained,
    tiny_model: Path,
    formatted: Path,
    sft_settings: Sft,
    compute: Compute,
    tmp_path: Path,
) -> None:
    out, curve = tmp_path / "elsewhere", tmp_path / "curves/sft.csv"
    metrics = sft.run(tiny_model, formatted, out, curve, sft_settings, compute)
    assert hashes.manifest(out) == hashes.manifest(sft_run.out)
    assert curve.read_bytes() == sft_run.curve.read_bytes()
    assert metrics == sft_run.metrics


def test_lora_on_all_linear_layers(
    tiny_model: Path, formatted: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    changed = {"method": "lora", "target_modules": "all-linear", "epochs": 1}
    settings = sft_settings.model_copy(update=changed)
    out = tmp_path / "sft"
    metrics = sft.run(tiny_model, formatted, out, tmp_path / "sft.csv", settings, compute)
    assert metrics["steps"] == 2
    assert adapter.read_method(out)["method"] == "lora"
    targets = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert {target.rpartition(".")[2] for target in targets} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_in_bfloat16_with_recomputed_activations_what_is_trained_stays_float32(
    tiny_model: Path, formatted: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    said = {"dtype": "bfloat16", "attention": "eager", "gradient_checkpointing": True}
    settings = sft_settings.model_copy(
        update={"method": "lora", "target_modules": "all-linear", "epochs": 1}
    )
    asked = compute.model_copy(update=said)
    out = tmp_path / "sft"
    metrics = sft.run(tiny_model, formatted, out, tmp_path / "sft.csv", settings, asked)
    assert math.isfinite(metrics["validation_loss"])
    weights = load_file(out / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert chosen.noted()["resolved"] == {**said, "pass_tokens": None}


def test_another_seed_gives_another_adapter(
    sft_run: Trained,
    tiny_model: Path,
    formatted: Path,
    sft_settings: Sft,
    compute: Compute,
    tmp_path: Path,
) -> None:
    other = compute.model_copy(update={"seed": compute.seed + 1})
    short = sft_settings.model_copy(update={"epochs": 1})
    sft.run(tiny_model, formatted, tmp_path / "sft", tmp_path / "sft.csv", short, other)
    assert hashes.sha256(tmp_path / "sft") != hashes.sha256(sft_run.out)


def test_switched_off_there_is_no_adapter(
    tiny_model: Path, formatted: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    off = sft_settings.model_copy(update={"enabled": False})
    out, curve = tmp_path / "sft", tmp_path / "curves/sft.csv"
    assert sft.run(tiny_model, formatted, out, curve, off, compute) == {"enabled": 0}
    assert [path.name for path in out.iterdir()] == ["method.json"]
    assert adapter.read_method(out) == {
        "method": "none",
        "base_sha256": hashes.sha256(tiny_model),
        "files": {},
    }
    assert curve.read_text() == "step,loss,validation_loss\n"


def test_no_rows_are_refused(
    tiny_model: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.jsonl", [])
    with pytest.raises(StageError, match=r"train\.jsonl holds no rows; .* switch this stage off"):
        sft.run(tiny_model, tmp_path, tmp_path / "out", tmp_path / "c.csv", sft_settings, compute)
