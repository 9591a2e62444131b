"""Direct preference optimisation: the adapter learns to prefer good answers (Rafailov et al. 2023)."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import GateError, Metrics, Out
from tasks.model import adapter as adapters
from tasks.model import chat, shapes
from tasks.params import Compute, Dpo
from tasks.training import beforehand, examples, loop, machine, resume
from tasks.training.memory import Work

FIRST_LOSS = math.log(2)
"""Before the first step policy and reference are the same model, so every margin is zero and the loss is
-log sigmoid(0)."""

FIRST_LOSS_TOLERANCE = 0.01


def run(
    base: Path, adapter: Path, data: Path, out: Out, curve: Out, dpo: Dpo, compute: Compute
) -> Metrics:
    """Continue the SFT adapter; the reference policy is the SFT model, not the model below it."""
    if not dpo.enabled:
        adapters.copy(adapter, out)
        loop.write_curve([], curve)
        log.info("switched off; the SFT adapter goes on unchanged")
        return {"enabled": 0}

    quiet()
    seed(compute)
    beforehand.check_model(base)
    tokenizer = chat.load_tokenizer(base)
    pairs, names = _pairs(data / "preferences.jsonl", base, tokenizer)
    validation, _ = _pairs(data / "preferences_validation.jsonl", base, tokenizer)
    compute = machine.settle(compute, _work(base, adapter, dpo, pairs))
    model = adapters.load_trainable(base, adapter)

    trainer = _trainer(model, tokenizer, pairs, validation, dpo, compute)
    points = loop.train(trainer, "preference optimisation", curve, dpo, names)
    check_first_loss(points[0]["loss"])

    method = adapters.read_method(adapter)["method"]
    assert method != "none"  # tasks.params refuses dpo without sft
    adapters.save(model, base, method, out)
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


def _pairs(file: Path, base: Path, tokenizer: Any) -> tuple[Any, list[str]]:
    """The pairs of a file, and their ids."""
    rows = examples.read_rows(file)
    names = [row["id"] for row in rows]
    pairs = examples.preference_pairs(rows, tokenizer)
    beforehand.check_context(base, _lengths(pairs), names, file)
    return pairs, names


def _lengths(pairs: Any) -> list[int]:
    """Tokens of each pair's longer conversation."""
    columns = (pairs[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
    return [
        len(prompt) + max(len(chosen), len(rejected))
        for prompt, chosen, rejected in zip(*columns, strict=True)
    ]


def _work(base: Path, adapter: Path, dpo: Dpo, pairs: Any) -> Work:
    weights = shapes.tensors(adapter).values()
    return Work(
        model=base,
        trained=sum(tensor.size for tensor in weights),
        quantised=adapters.checked_method(base, adapter)["method"] == "qlora",
        sequences=2 * dpo.batch_size,
        longest=max(_lengths(pairs)),
    )


def check_first_loss(loss: float) -> None:
    """Raise GateError unless the loss of step 1 is ln 2 within 1%: else the reference is wrong."""
    if abs(loss / FIRST_LOSS - 1) > FIRST_LOSS_TOLERANCE:
        raise GateError(
            f"the first DPO loss is {loss:.4f}, not ln 2 = {FIRST_LOSS:.4f} within 1%: the reference "
            "policy is not the SFT model; run `dvc repro -f sft` and look for dropout in the adapter"
        )


def _trainer(
    model: Any, tokenizer: Any, pairs: Any, validation: Any, dpo: Dpo, compute: Compute
) -> Any:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class RenderedDPOTrainer(resume.Resumable, DPOTrainer):  # type: ignore[misc]
        """TRL's trainer on pairs that `tasks.model.chat` has rendered already."""

        def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
            return dataset

    with tempfile.TemporaryDirectory() as scratch, adapters.kept_in_float32(model):
        arguments = loop.arguments(dpo, compute, Path(scratch)) | {
            "num_train_epochs": dpo.epochs,
            "beta": dpo.beta,
            "max_length": None,
            "train_sampling_strategy": "random",  # pairs have no single length to group by
        }
        trainer = RenderedDPOTrainer(
            model=model,
            args=DPOConfig(**arguments),
            train_dataset=pairs,
            eval_dataset=validation,
            processing_class=tokenizer,
        )
    return trainer


if __name__ == "__main__":
    stage.main(run)
