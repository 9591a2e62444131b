"""Direct preference optimisation: the SFT model learns to prefer good answers (Rafailov et al. 2023)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import GateError, Metrics, Out
from tasks.model import adapter as adapters
from tasks.model import chat
from tasks.params import Compute, Dpo
from tasks.training import examples, loop, optimiser, preferences, resume

FIRST_LOSS_TOLERANCE = 0.01


def run(
    base: Path, adapter: Path, data: Path, out: Out, curve: Out, dpo: Dpo, compute: Compute
) -> Metrics:
    """Continue what sft trained; the reference policy is the SFT model, not the model below it."""
    if not dpo.enabled:
        adapters.copy(adapter, out)
        loop.write_curve([], curve)
        log.info("switched off; what sft trained goes on unchanged")
        return {"enabled": 0}

    quiet()
    seed(compute)
    tokenizer = chat.load_tokenizer(base)
    pairs = examples.preference_pairs(examples.read_rows(data / "preferences.jsonl"), tokenizer)
    held_out = examples.read_rows(data / "preferences_validation.jsonl")
    validation = examples.preference_pairs(held_out, tokenizer)
    method = adapters.checked_method(base, adapter)["method"]
    model = adapters.load_trainable(base, adapter)

    trainer = _trainer(model, tokenizer, pairs, validation, dpo, compute)
    optimiser.keep_prefix(trainer, method)
    points = loop.train(trainer, "preference optimisation", curve, dpo)
    check_first_loss(points[0]["loss"], dpo)

    adapters.save(model, tokenizer, base, method, out)
    return {
        "enabled": 1,
        "pairs": len(pairs),
        "steps": len(points),
        "loss_first": points[0]["loss"],
        "loss_last": points[-1]["loss"],
        "validation_loss": trainer.best.loss,
        "best_step": trainer.best.step,
        "reward_accuracy_last": points[-1]["reward_accuracy"],
        "reward_margin_last": points[-1]["reward_margin"],
    }


def check_first_loss(loss: float, dpo: Dpo) -> None:
    """Raise GateError unless the loss of step 1 is within 1% what it is where policy and reference are
    the same model and every margin is zero, for `sigmoid` ln 2: else the reference is wrong."""
    expected = preferences.first_loss(dpo)
    if expected is not None and abs(loss / expected - 1) > FIRST_LOSS_TOLERANCE:
        raise GateError(
            f"the first DPO loss ({dpo.loss}) is {loss:.4f}, not {expected:.4f} within 1%: the "
            "reference policy is not the SFT model; run `dvc repro -f sft` and look for dropout in "
            "the adapter"
        )


def _trainer(
    model: Any, tokenizer: Any, pairs: Any, validation: Any, dpo: Dpo, compute: Compute
) -> Any:
    from transformers import Trainer, TrainingArguments

    class PreferenceTrainer(resume.Resumable, preferences.Preferences, Trainer):  # type: ignore[misc]
        """Goes on where a killed run stopped."""

        pass_tokens = compute.pass_tokens
        settings = dpo

    with tempfile.TemporaryDirectory() as scratch:
        arguments = loop.arguments(dpo, compute, Path(scratch)) | {
            "num_train_epochs": dpo.epochs,
            "label_names": [],
        }
        trainer = PreferenceTrainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=pairs,
            eval_dataset=validation,
            data_collator=preferences.collate,
            processing_class=tokenizer,
        )
    trainer.prepare()
    return trainer


if __name__ == "__main__":
    stage.main(run)
