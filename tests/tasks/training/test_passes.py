"""A batch in passes gives what the whole batch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from small_runs import Trained, gradients

from tasks import dpo, sft
from tasks.model import adapter, chat
from tasks.params import SMOOTHED, WHOLE_BATCH, Compute, Dpo, DpoLoss, Sft
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


@pytest.fixture(params=["sft", "dpo"])
def trainer(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    formatted: Path,
    sft_run: Trained,
    sft_settings: Sft,
    dpo_settings: Dpo,
    settled: Compute,
) -> Any:
    """Of rows of unlike lengths; for pairs, with another policy than the reference."""
    tokenizer = chat.load_tokenizer(tiny_model)
    model = adapter.load_trainable(tiny_model, sft_run.out)
    if request.param == "sft":
        rows = examples.supervised_chats(examples.read_rows(formatted / "train.jsonl"), tokenizer)
        return sft._trainer(model, tokenizer, rows, rows, sft_settings, settled)
    pairs = examples.read_rows(formatted / "preferences.jsonl")
    rows = examples.preference_pairs(pairs, tokenizer)
    settings = dpo_settings.model_copy(update={"loss": "ipo"})
    made = dpo._trainer(model, tokenizer, rows, rows, settings, settled)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.05)
    return made


def test_the_same_gradient_as_the_whole_batch(trainer: Any) -> None:
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


def test_validation_in_passes_has_the_loss_of_whole_batches(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    compute_loss = trainer.compute_loss

    def noted(model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(tuple(inputs["input_ids"].shape))
        return compute_loss(model, inputs, *arguments, **named)

    monkeypatch.setattr(trainer, "compute_loss", noted)
    found = []
    for tokens in (None, 150):
        trainer.pass_tokens = tokens
        found.append(trainer.evaluate())
    whole, cut = found
    assert cut.keys() == whole.keys()
    for name in {"eval_loss", "eval_rewards/margins", "eval_mean_token_accuracy"} & whole.keys():
        assert cut[name] == pytest.approx(whole[name], rel=1e-5), name
    assert sum(rows for rows, _ in seen) == 2 * len(trainer.eval_dataset)
    batches = len(trainer.get_eval_dataloader())
    assert len(seen) > 2 * batches
    assert all(rows == 1 or rows * length <= 150 for rows, length in seen[batches:])


@pytest.mark.parametrize("trainer", ["dpo"], indirect=True)
def test_the_reference_in_passes_says_the_same(trainer: Any) -> None:
    with trainer.model.disable_adapter():
        found = []
        for tokens in (None, 150):
            trainer.pass_tokens = tokens
            rows = trainer._with_reference(trainer.train_dataset.remove_columns("reference"))
            found.append(torch.tensor(rows["reference"][:]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("trainer", ["dpo"], indirect=True)
def test_losses_that_compare_the_pairs_of_a_batch_are_those_that_passes_change(
    trainer: Any,
) -> None:
    """Those for which `compute.pass_tokens` is refused.  Where policy and reference rank pairs alike,
    `aot` does not mind either, so the reference is one of its own."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    batch["reference"] += 5 * torch.randn(batch["reference"].shape)
    assert len({tuple(row) for row in batch["attention_mask"].tolist()}) > 2  # unlike lengths
    changed = []
    for name in get_args(DpoLoss):
        smoothing = 0.1 if name in SMOOTHED else 0.0
        update = {"loss": name, "label_smoothing": smoothing}
        trainer.settings = trainer.settings.model_copy(update=update)
        found = []
        for tokens in (None, 150):
            trainer.pass_tokens = tokens
            with torch.no_grad():
                losses = [
                    trainer.compute_loss(trainer.model, part) for part in trainer.passes(batch)
                ]
            found.append(float(sum(losses)))
        assert len(losses) > 2
        if found[1] != pytest.approx(found[0], rel=1e-5):
            changed.append(name)
    assert tuple(changed) == WHOLE_BATCH


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
