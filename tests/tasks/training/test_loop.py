"""The training loop: it reports without a clock, and stops at the first loss that is no number."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tasks import sft
from tasks.lineage import tracking
from tasks.lineage.stage import FAULT
from tasks.model import load
from tasks.params import Compute, Cpt, Params, Sft
from tasks.training import causal, loop

pytest_plugins = ("small_runs",)


@pytest.fixture
def settings(params: Params) -> Cpt:
    return params.cpt.model_copy(update={"batch_size": 2})


def blocks(count: int) -> Any:
    from datasets import Dataset

    rows = [list(range(10 + row, 26 + row)) for row in range(count)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def train(
    model: Any, settings: Cpt, settled: Compute, curve: Path | None, steps: int | None = None
) -> list[dict[str, float]]:
    length = {"max_steps": steps} if steps else {"num_train_epochs": 1}
    return causal.train_causal(model, blocks(6), settings, settled, length, curve)[0]


def test_each_step_is_reported_to_the_curve_and_to_mlflow(
    tiny_model: Path,
    settings: Cpt,
    settled: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    def log_metrics(values: dict[str, float], step: int) -> None:
        told.append((step, values))

    monkeypatch.setattr(tracking, "log_metrics", log_metrics)
    points = train(load.load_model(tiny_model), settings, settled, tmp_path / "new/curve.csv")
    assert [point["step"] for point in points] == [1, 2, 3]
    assert [step for step, _ in told] == [1, 2, 3]
    assert set(points[0]) == {  # nothing of the clock
        "step", "loss", "learning_rate", "grad_norm", "token_accuracy"
    }  # fmt: skip
    for point, (_, values) in zip(points, told, strict=True):
        assert point["loss"] == round(values["loss"], 6)
    with (tmp_path / "new/curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["step", "loss", "validation_loss", "grad_norm", "learning_rate", "token_accuracy"]
    assert list(rows[0]) == columns
    assert [float(row["loss"]) for row in rows] == [point["loss"] for point in points]


def test_accumulated_batches_are_one_step(
    tiny_model: Path, settings: Cpt, settled: Compute
) -> None:
    two = settings.model_copy(update={"gradient_accumulation": 2})
    points = train(load.load_model(tiny_model), two, settled, None)
    assert [point["step"] for point in points] == [1, 2]  # 3 batches, 2 a step


def test_a_loss_that_is_no_number_stops_at_its_step(
    tiny_model: Path, settings: Cpt, settled: Compute, tmp_path: Path
) -> None:
    model = load.load_model(tiny_model)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(loop.Diverged) as caught:
        train(model, settings, settled, tmp_path / "curve.csv")
    told = re.fullmatch(
        r"step 1: the loss is nan; look at what was trained on in this step \(blocks (\d), (\d)\), or "
        r"lower the learning rate \((\S+) at this step\)",
        str(caught.value),
    )
    assert told is not None
    assert {int(told[1]), int(told[2])} < set(range(1, 7))
    assert 0 <= float(told[3]) <= settings.learning_rate
    assert caught.value.exit_code == FAULT
    assert not (tmp_path / "curve.csv").exists()


def test_a_loss_that_breaks_later_names_that_step(
    tiny_model: Path, settings: Cpt, settled: Compute
) -> None:
    wild = settings.model_copy(
        update={"learning_rate": 1e38, "warmup_share": 0.0, "max_grad_norm": 1e38}
    )
    with pytest.raises(
        loop.Diverged, match=r"^step [123]: the (loss|gradient) is (nan|inf); look at what"
    ):
        train(load.load_model(tiny_model), wild, settled, None)


def test_a_last_update_that_breaks_the_model_is_seen(
    tiny_model: Path, settings: Cpt, settled: Compute
) -> None:
    """No loss is computed after it, and nothing validates."""
    wild = settings.model_copy(
        update={"learning_rate": 1e300, "warmup_share": 0.0, "validation_share": 0.0}
    )
    with pytest.raises(
        loop.Diverged, match=r"^after the last step, 1, the loss is (nan|inf); lower"
    ):
        train(load.load_model(tiny_model), wild, settled, None, steps=1)


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_rows_of_the_step_are_named(
    tiny_model: Path,
    formatted: Path,
    sft_settings: Sft,
    settled: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    accumulation: int,
) -> None:
    """What the trainer was given is noted before its forward pass, and held against the message."""
    from tasks.model import chat

    seen: list[str] = []
    rows = [json.loads(line) for line in (formatted / "train.jsonl").open(encoding="utf-8")]
    tokenizer = chat.load_tokenizer(tiny_model)
    at = {row["messages"][0]["content"].split()[2]: row["id"] for row in rows}
    per_step, last = 2 * accumulation, (8 // (2 * accumulation)) * (epoch - 1) + 2

    def training_step(self: Any, model: Any, inputs: Any, *_: Any) -> Any:
        texts = tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        seen.extend(at[text.split()[2]] for text in texts)
        broken = len(seen) == last * per_step
        loss = original(self, model, inputs, *_)
        return loss * float("nan") if broken else loss

    original = transformers.Trainer.training_step
    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    changed = {"batch_size": 2, "gradient_accumulation": accumulation, "method": "lora"}
    settings = sft_settings.model_copy(update={**changed, "target_modules": "all-linear"})
    with pytest.raises(loop.Diverged) as caught:
        sft.run(tiny_model, formatted, tmp_path / "out", tmp_path / "c.csv", settings, settled)
    assert f"step {last}: the loss is nan" in str(caught.value)
    assert f"(rows {', '.join(seen[-per_step:])})" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_curve_without_points_is_a_heading(tmp_path: Path) -> None:
    loop.write_curve([], tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_bytes() == b"step,loss,validation_loss\n"


def test_columns_stand_in_an_order_that_does_not_depend_on_the_trainer(tmp_path: Path) -> None:
    points = [{"step": 1, "zeta": 2.0, "loss": 0.5}, {"alpha": 3.0, "loss": 0.25, "step": 2}]
    loop.write_curve(points, tmp_path / "curve.csv")
    assert (
        tmp_path / "curve.csv"
    ).read_text() == "step,loss,validation_loss,alpha,zeta\n1,0.5,,,2.0\n2,0.25,,3.0,\n"


def test_what_decides_the_bits_is_said(params: Params, settled: Compute, tmp_path: Path) -> None:
    found = loop.arguments(params.sft, settled, tmp_path)
    assert found["seed"] == found["data_seed"] == settled.seed
    for key in ("learning_rate", "weight_decay", "adam_beta2", "max_grad_norm"):
        assert found[key] == getattr(params.sft, key)
    assert found["optim"] == "adamw_torch_fused"
    assert found["save_strategy"] == "no"
    assert found["report_to"] == "none"
