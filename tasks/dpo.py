"""Direct preference optimisation: the SFT model learns to prefer good answers (Rafailov et al. 2023)."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import GateError, Metrics, Out
from tasks.model import adapter as adapters
from tasks.model import chat, handoff, load, shapes
from tasks.params import PROMPT_METHODS, WHOLE_BATCH, Compute, Dpo
from tasks.training import (
    beforehand,
    examples,
    loop,
    machine,
    passes,
    preferences,
    resume,
)
from tasks.training.memory import Work

FIRST_LOSS_TOLERANCE = 0.01
FIRST_LOSS_DIGITS = 1e-6
"""Losses are logged in so many digits."""


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
    beforehand.check_model(base)
    tokenizer = chat.load_tokenizer(base)
    method = adapters.checked_method(base, adapter)["method"]
    virtual = load.tokens_before(adapter)
    pairs, names = _pairs(data / "preferences.jsonl", base, tokenizer, virtual)
    validation, _ = _pairs(data / "preferences_validation.jsonl", base, tokenizer, virtual)
    compute = machine.settle(compute, _work(base, adapter, method, dpo, pairs))
    model = adapters.load_trainable(base, adapter)
    handoff.require(model, adapter, "the reference policy of dpo", _REFERENCE, compute.dtype)

    trainer = _trainer(model, tokenizer, pairs, validation, dpo, compute)
    first = functools.partial(check_first_loss, dpo=dpo)
    points = loop.train(trainer, "preference optimisation", curve, dpo, names, first)

    handoff.write(model, _texts(validation), compute.dtype, out)
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


def _pairs(file: Path, base: Path, tokenizer: Any, virtual_tokens: int) -> tuple[Any, list[str]]:
    """The pairs of a file, and their ids."""
    rows = examples.read_rows(file)
    names = [row["id"] for row in rows]
    pairs = examples.preference_pairs(rows, tokenizer)
    prompts, *answers = _lengths(pairs)
    longer = [
        virtual_tokens + prompt + max(both) for prompt, *both in zip(prompts, *answers, strict=True)
    ]
    beforehand.check_context(base, longer, names, file)
    return pairs, names


_REFERENCE = "run `dvc repro -f sft`, and check that models/sft is what it wrote: `dvc status sft`"


def _texts(pairs: Any) -> list[list[int]]:
    """Prompts with the answers that were chosen."""
    few = pairs[: handoff.PROMPTS]
    return [
        prompt + answer for prompt, answer in zip(few["prompt_ids"], few["chosen_ids"], strict=True)
    ]


def _lengths(pairs: Any) -> list[list[int]]:
    """Tokens of each prompt, each chosen and each rejected answer."""
    return [[len(ids) for ids in pairs[f"{part}_ids"]] for part in ("prompt", "chosen", "rejected")]


def _work(base: Path, adapter: Path, method: str, dpo: Dpo, pairs: Any) -> Work:
    """A pair is one sequence: prompt, chosen, rejected; of a model with virtual tokens it is two, each
    with these and the prompt."""
    weights = shapes.tensors(adapter).values()
    prompts, *answers = _lengths(pairs)
    if method in PROMPT_METHODS:
        virtual = load.tokens_before(adapter)
        prompts = [2 * (virtual + prompt) for prompt in prompts]
    return Work(
        stage="dpo",
        model=base,
        trained=None if method == "full" else sum(tensor.size for tensor in weights),
        quantised=method == "qlora",
        sequences=dpo.batch_size,
        longest=max(map(sum, zip(prompts, *answers, strict=True))),
        own_forward=method in PROMPT_METHODS,
        divides=dpo.loss not in WHOLE_BATCH,
        recomputes=method != "prefix_tuning",
    )


def check_first_loss(loss: float, dpo: Dpo) -> None:
    """Raise GateError unless the loss of step 1 is within 1% what it is where policy and reference are
    the same model and every margin is zero, for `sigmoid` ln 2.  That this model is the one of sft is
    what `handoff.require` tells."""
    expected = preferences.first_loss(dpo)
    if expected is None:
        return
    if abs(loss - expected) > FIRST_LOSS_TOLERANCE * abs(expected) + FIRST_LOSS_DIGITS:
        raise GateError(
            f"the first DPO loss ({dpo.loss}) is {loss:.4f}, not {expected:.4f} within 1%: policy and "
            "reference policy are not the same model; run `dvc repro -f sft` and look for dropout in "
            "the adapter"
        )


def _trainer(
    model: Any, tokenizer: Any, pairs: Any, validation: Any, dpo: Dpo, compute: Compute
) -> Any:
    from transformers import Trainer, TrainingArguments

    class PreferenceTrainer(resume.Resumable, preferences.Preferences, Trainer):  # type: ignore[misc]
        """Goes on where a killed run stopped."""

        pass_tokens = passes.budget(compute)
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
