"""Supervised fine-tuning: an adapter, or the whole model, learns to give the answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import Metrics, Out
from tasks.model import adapter, chat, handoff
from tasks.params import PROMPT_METHODS, Compute, Sft
from tasks.training import (
    beforehand,
    examples,
    loop,
    machine,
    memory,
    optimiser,
    passes,
    resume,
)


def run(base: Path, data: Path, out: Out, curve: Out, sft: Sft, compute: Compute) -> Metrics:
    """Train the CPT model by sft.method; the loss is over the assistant's tokens alone."""
    if not sft.enabled:
        adapter.write_none(base, out)
        loop.write_curve([], curve)
        log.info("switched off; the CPT model goes on without an adapter")
        return {"enabled": 0}

    quiet()
    seed(compute)
    beforehand.check_model(base)
    if sft.method not in ("full", *PROMPT_METHODS):
        beforehand.check_targets(base, sft.target_modules, "sft.target_modules")
    tokenizer = chat.load_tokenizer(base)
    train, names = _chats(data / "train.jsonl", base, tokenizer, sft)
    validation, _ = _chats(data / "validation.jsonl", base, tokenizer, sft)
    compute = machine.settle(compute, _work(base, sft, train))
    model = adapter.load_base(base, sft.method)
    fixed = validation["input_ids"][: handoff.PROMPTS]
    quantised = sft.method == "qlora"
    handoff.require(model, base, "what sft has loaded", _START, compute.dtype, quantised)
    handed_on = handoff.next_tokens(model, fixed)
    model = adapter.put_on(model, sft)
    trained, total = adapter.counts(model)
    log.info(
        "%s: %d rows; %.2f%% of %d weights", sft.method, len(train), 100 * trained / total, total
    )

    trainer = _trainer(model, tokenizer, train, validation, sft, compute)
    optimiser.prepare(trainer, sft)
    if sft.method in PROMPT_METHODS:
        log.info("%s: virtual tokens change answers before the first step", sft.method)
    else:
        start = handoff.next_tokens(trainer.model, fixed)
        handoff.check(handed_on, start, handoff.EXACT, "the start of sft", _START)
    points = loop.train(trainer, "supervised fine-tuning", curve, sft, names)
    log.info("validation loss %.4f, of step %d", trainer.best.loss, trainer.best.step)

    handoff.write(model, fixed, compute.dtype, out)
    adapter.save(model, tokenizer, base, sft.method, out)
    return {
        "enabled": 1,
        "rows": len(train),
        "weights_trained": trained,
        "steps": len(points),
        "loss_first": points[0]["loss"],
        "loss_last": points[-1]["loss"],
        "validation_loss": trainer.best.loss,
        "best_step": trainer.best.step,
    }


_START = "run `dvc repro -f cpt`, and check that models/cpt is what it wrote: `dvc status cpt`"


def _chats(file: Path, base: Path, tokenizer: Any, sft: Sft) -> tuple[Any, list[str]]:
    """The conversations of a file, and their ids."""
    rows = examples.read_rows(file)
    names = [row["id"] for row in rows]
    chats = examples.supervised_chats(rows, tokenizer)
    lengths = [_virtual_tokens(sft) + len(ids) for ids in chats["input_ids"]]
    beforehand.check_context(base, lengths, names, file)
    return chats, names


def _virtual_tokens(sft: Sft) -> int:
    return sft.virtual_tokens if sft.method in PROMPT_METHODS else 0


def _work(base: Path, sft: Sft, train: Any) -> memory.Work:
    return memory.Work(
        stage="sft",
        model=base,
        trained=memory.trained(base, sft),
        quantised=sft.method == "qlora",
        sequences=sft.batch_size,
        longest=_virtual_tokens(sft) + max(len(ids) for ids in train["input_ids"]),
        own_forward=sft.method in PROMPT_METHODS,
        recomputes=sft.method != "prefix_tuning",
        adapter=memory.lora_weights(base, sft.lora_r, sft.target_modules),
    )


def _trainer(
    model: Any, tokenizer: Any, train: Any, validation: Any, sft: Sft, compute: Compute
) -> Any:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class SupervisedTrainer(resume.Resumable, passes.NextToken, SFTTrainer):  # type: ignore[misc]
        """TRL's, with a loss that computes less, and goes on where a killed run stopped."""

        pass_tokens = passes.budget(compute)

    with tempfile.TemporaryDirectory() as scratch, adapter.kept_in_float32(model):
        arguments = loop.arguments(sft, compute, Path(scratch)) | {
            "num_train_epochs": sft.epochs,
            "max_length": None,  # `format` rejected what is too long; nothing is ever cut
            "dataset_kwargs": {"skip_prepare_dataset": True},  # tasks.model.chat rendered it
        }
        trainer = SupervisedTrainer(
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
        )
    return trainer


if __name__ == "__main__":
    stage.main(run)
