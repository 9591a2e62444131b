"""What a run ends with are the weights of its lowest validation loss."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from small_runs import write_formatted, write_rows

from tasks import sft
from tasks.model import adapter, chat
from tasks.params import Compute, Sft
from tasks.training import examples, validation
from tasks.training.validation import Best

pytest_plugins = ("small_runs",)


@pytest.mark.parametrize(
    ("validations", "last", "expected"),
    [(1, 10, {10}), (4, 992, {248, 496, 744, 992}), (4, 10, {3, 5, 8, 10}), (4, 3, {1, 2, 3})],
)
def test_validations_are_spread_and_the_last_step_has_one(
    validations: int, last: int, expected: set[int]
) -> None:
    assert validation.steps(validations, last) == expected


def test_the_first_of_equal_losses_is_the_best() -> None:
    model, best = torch.nn.Linear(2, 1), Best()
    best.see(0.5, 10, model)
    before = {name: value.clone() for name, value in best.weights.items()}
    with torch.no_grad():
        model.weight.add_(1)
    for step in (20, 30):
        best.see(0.5, step, model)
    assert (best.loss, best.step, best.waited) == (0.5, 10, 2)
    best.put_back(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    best = Best()
    best.see(math.nan, 1, torch.nn.Linear(2, 1))
    assert (best.step, best.waited, best.weights) == (0, 1, {})
    assert Best.of(best.document(), {}).loss == math.inf


def losses(curve: Path) -> dict[int, float]:
    with curve.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["step"]): float(row["validation_loss"]) for row in rows if row["validation_loss"]
    }


def loss(base: Path, trained: Path, data: Path) -> float:
    """Of the validation rows' answers, computed anew."""
    model = adapter.load_trainable(base, trained)
    rows = examples.read_rows(data / "validation.jsonl")
    total = tokens = 0.0
    for row in examples.supervised_chats(rows, chat.load_tokenizer(base)):
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            found = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
        count = int((labels[:, 1:] != examples.IGNORED).sum())
        total, tokens = total + float(found) * count, tokens + count
    return total / tokens


def test_a_run_that_gets_worse_stops_and_ends_with_its_best(
    tiny_model: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    worse = {"learning_rate": 5.0e-2, "warmup_share": 0.0, "epochs": 4, "validations": 8}
    formatted = tmp_path / "formatted"
    write_formatted(formatted, tiny_model)
    rows = examples.read_rows(formatted / "validation.jsonl")
    for row in rows:
        row["messages"][-1]["content"] = "no truck is anywhere"  # what training makes unlikely
    write_rows(formatted / "validation.jsonl", rows)
    settings = sft_settings.model_copy(update={"method": "lora", **worse})
    whole = sft.run(
        tiny_model, formatted, tmp_path / "whole", tmp_path / "whole.csv", settings, compute
    )
    measured = losses(tmp_path / "whole.csv")
    assert list(measured) == [1, 2, 3, 4, 5, 6, 7, 8]
    lowest = min(measured, key=lambda step: measured[step])
    assert whole["best_step"] == lowest < 7
    assert whole["validation_loss"] == measured[lowest] < measured[8]

    patient = settings.model_copy(update={"patience": 1})
    short = sft.run(
        tiny_model, formatted, tmp_path / "short", tmp_path / "short.csv", patient, compute
    )
    assert short["steps"] < whole["steps"]
    for run, metrics in (("whole", whole), ("short", short)):
        found = loss(tiny_model, tmp_path / run, formatted)
        assert found == pytest.approx(metrics["validation_loss"], abs=1e-5)
