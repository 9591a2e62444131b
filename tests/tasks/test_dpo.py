"""Preference tuning: it continues the SFT adapter, and starts from the SFT policy exactly."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Trained, machine_names

from tasks import dpo
from tasks.lineage import hashes
from tasks.lineage.stage import GateError, StageError
from tasks.model import adapter
from tasks.params import Compute, Dpo

pytest_plugins = ("small_runs",)


def test_the_first_loss_is_ln_2(dpo_run: Trained) -> None:
    assert abs(dpo_run.metrics["loss_first"] / math.log(2) - 1) < 0.01
    assert dpo_run.metrics["loss_last"] < dpo_run.metrics["loss_first"]
    assert dpo_run.metrics["reward_margin_last"] > 0


@pytest.mark.parametrize("loss", [0.70007, 0.6863])
def test_a_first_loss_near_ln_2_passes(loss: float, dpo_settings: Dpo) -> None:
    dpo.check_first_loss(loss, dpo_settings)


@pytest.mark.parametrize("loss", [0.7002, 0.6861, 0.0])
def test_another_first_loss_is_refused(loss: float, dpo_settings: Dpo) -> None:
    with pytest.raises(GateError) as caught:
        dpo.check_first_loss(loss, dpo_settings)
    assert str(caught.value) == (
        f"the first DPO loss (sigmoid) is {loss:.4f}, not 0.6931 within 1%: policy and reference "
        "policy are not the same model; run `dvc repro -f sft` and look for dropout in the adapter"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("loss", "right", "wrong"), [("hinge", 1.0, 1.02), ("ipo", 25.0, 24.7), ("sppo_hard", 50, 51)]
)
def test_each_loss_has_its_own_first(
    loss: str, right: float, wrong: float, dpo_settings: Dpo
) -> None:
    settings = dpo_settings.model_copy(update={"loss": loss})
    dpo.check_first_loss(right, settings)
    with pytest.raises(GateError, match=rf"\({loss}\) is {wrong:.4f}, not {right:.4f} within 1%"):
        dpo.check_first_loss(wrong, settings)


def test_another_first_loss_ends_the_run_at_step_1(
    sft_run: Trained, tiny_model: Path, formatted: Path, dpo_settings: Dpo, compute: Compute,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[float] = []

    def refuse(loss: float, dpo: Dpo) -> None:
        seen.append(loss)
        raise GateError("the reference is wrong")

    monkeypatch.setattr(dpo, "check_first_loss", refuse)
    out, curve = tmp_path / "out", tmp_path / "curve.csv"
    with pytest.raises(GateError, match="the reference is wrong"):
        dpo.run(tiny_model, sft_run.out, formatted, out, curve, dpo_settings, compute)
    assert seen == [pytest.approx(math.log(2), abs=1e-4)]
    assert not out.exists()
    assert not curve.exists()


def test_a_reference_that_is_not_what_sft_trained_is_refused(
    sft_run: Trained, tiny_model: Path, formatted: Path, dpo_settings: Dpo, compute: Compute,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The model below the adapter, which is its own reference as well: the first loss would be ln 2."""
    load_trainable = adapter.load_trainable

    def below(base: Path, trained: Path) -> Any:
        model = load_trainable(base, trained)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name or "lora_embedding_B" in name:
                    value.zero_()
        return model

    monkeypatch.setattr(adapter, "load_trainable", below)
    with pytest.raises(
        GateError,
        match=r"the reference policy of dpo is not the model that was handed on: .*handoff\.json differ "
        r"by up to .*, more than 0\.001; run `dvc repro -f sft`",
    ):
        dpo.run(
            tiny_model, sft_run.out, formatted, tmp_path / "out", tmp_path / "curve.csv",
            dpo_settings, compute,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_first_loss_of_a_plain_cross_entropy_is_anything(dpo_settings: Dpo) -> None:
    dpo.check_first_loss(7.0, dpo_settings.model_copy(update={"loss": "sft"}))


def test_what_is_written(dpo_run: Trained, sft_run: Trained, tiny_model: Path) -> None:
    assert {path.name for path in dpo_run.out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "handoff.json",
        "method.json",
    }
    own, its = (adapter.read_method(run.out) for run in (dpo_run, sft_run))
    assert {**own, "files": None} == {**its, "files": None}
    named = {"adapter_config.json", "adapter_model.safetensors", "handoff.json"}
    assert own["files"].keys() == named
    configs = [
        json.loads((run.out / "adapter_config.json").read_text()) for run in (dpo_run, sft_run)
    ]
    assert configs[0]["r"] == configs[1]["r"]
    assert set(configs[0]["target_modules"]) == set(configs[1]["target_modules"])
    assert machine_names(dpo_run.out.parent, dpo_run.out.parent, sft_run.out, tiny_model) == []


def test_the_adapter_is_another_of_the_same_shape(dpo_run: Trained, sft_run: Trained) -> None:
    from safetensors.torch import load_file

    mine, before = (load_file(run.out / "adapter_model.safetensors") for run in (dpo_run, sft_run))
    assert {name: weight.shape for name, weight in mine.items()} == {
        name: weight.shape for name, weight in before.items()
    }
    assert all(bool((mine[name] != before[name]).any()) for name in mine)


def test_what_is_measured(dpo_run: Trained) -> None:
    with dpo_run.curve.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:2] == ["step", "loss"]
    assert {"reward_accuracy", "reward_margin"} <= set(rows[0])
    assert dpo_run.metrics["steps"] == len(rows) == 4  # 2 epochs of 8 pairs, 4 a step
    assert dpo_run.metrics["pairs"] == 8


def test_the_same_bytes_twice(
    dpo_run: Trained,
    sft_run: Trained,
    tiny_model: Path,
    formatted: Path,
    dpo_settings: Dpo,
    compute: Compute,
    tmp_path: Path,
) -> None:
    out, curve = tmp_path / "elsewhere", tmp_path / "curves/dpo.csv"
    metrics = dpo.run(tiny_model, sft_run.out, formatted, out, curve, dpo_settings, compute)
    assert hashes.manifest(out) == hashes.manifest(dpo_run.out)
    assert curve.read_bytes() == dpo_run.curve.read_bytes()
    assert metrics == dpo_run.metrics


def test_switched_off_hands_the_adapter_on(
    sft_run: Trained,
    tiny_model: Path,
    formatted: Path,
    dpo_settings: Dpo,
    compute: Compute,
    tmp_path: Path,
) -> None:
    off = dpo_settings.model_copy(update={"enabled": False})
    out, curve = tmp_path / "dpo", tmp_path / "curves/dpo.csv"
    metrics = dpo.run(tiny_model, sft_run.out, formatted, out, curve, off, compute)
    assert metrics == {"enabled": 0}
    assert hashes.manifest(out) == hashes.manifest(sft_run.out)
    assert curve.read_text() == "step,loss,validation_loss\n"


def test_no_pairs_are_refused(
    sft_run: Trained, tiny_model: Path, dpo_settings: Dpo, compute: Compute, tmp_path: Path
) -> None:
    (tmp_path / "preferences.jsonl").touch()
    curve = tmp_path / "dpo.csv"
    with pytest.raises(StageError, match=r"preferences\.jsonl holds no rows"):
        dpo.run(tiny_model, sft_run.out, tmp_path, tmp_path / "o", curve, dpo_settings, compute)
