"""A batch in passes gives what the whole batch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Trained, gradients

from tasks import sft
from tasks.model import adapter, chat
from tasks.params import Compute, Dpo, Sft
from tasks.training import examples, passes

pytest_plugins = ("small_runs",)


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = row + 1
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "worth": torch.tensor(lengths) * 1.0}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (None, [[7, 2, 5, 2, 9]]),
        (9, [[2, 2], [5], [7], [9]]),
        (14, [[2, 2], [5, 7], [9]]),
        (1, [[2], [2], [5], [7], [9]]),
        (1000, [[2, 2, 5, 7, 9]]),
    ],
)
def test_rows_of_like_length_go_together(tokens: int | None, expected: list[list[int]]) -> None:
    found = list(passes.split(padded([7, 2, 5, 2, 9]), tokens))
    assert [part["worth"].int().tolist() for part in found] == expected
    seen = []
    for part, lengths in zip(found, expected, strict=True):
        assert part["input_ids"].shape == (len(lengths), max(lengths))  # no more padding
        assert part["attention_mask"].sum(1).tolist() == lengths
        assert tokens is None or len(lengths) == 1 or part["input_ids"].numel() <= tokens
        seen += part["input_ids"][:, 0].tolist()
    assert sorted(seen) == [1, 2, 3, 4, 5]


def test_virtual_tokens_before_each_row_count() -> None:
    found = list(passes.split(padded([7, 2, 5, 2, 9]), 14, virtual=3))
    assert [part["worth"].int().tolist() for part in found] == [[2, 2], [5], [7], [9]]


def test_rows_without_a_mask_are_all_as_long() -> None:
    found = list(passes.split({"input_ids": torch.zeros(5, 8)}, 16))
    assert [len(part["input_ids"]) for part in found] == [2, 2, 1]


def step(trainer: Any, rows: Any) -> tuple[float, dict[str, torch.Tensor]]:
    inputs = trainer.data_collator([rows[number] for number in range(len(rows))])
    items = None
    if "labels" in inputs:
        items = (inputs["labels"][:, 1:] != examples.IGNORED).sum()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(trainer.model, inputs, items)
    return float(loss), gradients(trainer.model)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_the_same_gradient_as_the_whole_batch(
    kind: str,
    tiny_model: Path,
    formatted: Path,
    sft_run: Trained,
    sft_settings: Sft,
    dpo_settings: Dpo,
    settled: Compute,
) -> None:
    from tasks import dpo

    tokenizer = chat.load_tokenizer(tiny_model)
    model = adapter.load_trainable(tiny_model, sft_run.out)
    if kind == "sft":
        rows = examples.supervised_chats(examples.read_rows(formatted / "train.jsonl"), tokenizer)
        trainer = sft._trainer(model, tokenizer, rows, rows, sft_settings, settled)
    else:
        rows = examples.preference_pairs(
            examples.read_rows(formatted / "preferences.jsonl"), tokenizer
        )
        settings = dpo_settings.model_copy(update={"loss": "ipo"})
        trainer = dpo._trainer(model, tokenizer, rows, rows, settings, settled)
        rows = trainer.train_dataset
    trainer.create_optimizer()
    whole, expected = step(trainer, rows)
    trainer.pass_tokens = 150
    cut = list(trainer.passes(trainer.data_collator(list(rows))))
    assert len(cut) == pytest.approx(4, abs=2)
    loss, found = step(trainer, rows)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys() != set()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_in_passes_takes_all_rows_of_a_step(
    tiny_model: Path, formatted: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    found = []
    for name, tokens in (("batches", None), ("passes", 100)):
        settings = sft_settings.model_copy(
            update={"method": "lora", "epochs": 1, "batch_size": 2, "gradient_accumulation": 2}
        )
        budget = compute.model_copy(update={"pass_tokens": tokens})
        curve = tmp_path / f"{name}.csv"
        found.append(sft.run(tiny_model, formatted, tmp_path / name, curve, settings, budget))
    batches, in_passes = found
    assert in_passes["steps"] == batches["steps"] == 2
    assert in_passes["loss_first"] == pytest.approx(batches["loss_first"], rel=0.1)
