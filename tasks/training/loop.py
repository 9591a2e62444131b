"""What the three trainers share: arguments, progress, the loss curve, faults."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import tracking
from tasks.lineage.console import log, progress
from tasks.lineage.stage import FAULT, StageError
from tasks.params import Compute, Optimiser, Validated
from tasks.training import resume, validation

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


class Diverged(StageError):
    """The loss is not a number any more."""

    exit_code = FAULT


def arguments(settings: Optimiser, compute: Compute, scratch: Path) -> dict[str, Any]:
    """Arguments of transformers' Trainer, and of TRL's, for a run that repeats to the bit.

    `scratch` takes what the trainer insists on writing; nothing in it is kept.
    """
    import torch

    gpu = torch.cuda.is_available()
    rows, batches = settings.batch_size, settings.gradient_accumulation
    if compute.pass_tokens is not None:  # passes are cut from all rows of a step
        rows, batches = rows * batches, 1
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": batches,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_share,  # below 1 it is a share of all steps
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch_fused",  # the unfused one takes square roots from MKL, by vendor
        "seed": compute.seed,
        "data_seed": compute.seed,
        "bf16": compute.dtype == "bfloat16",
        "use_cpu": not gpu,
        # TRL's default is on: it made 60 steps take 59 s instead of 7 s, for memory that a small model
        # does not need.
        "gradient_checkpointing": compute.gradient_checkpointing is True,
        "train_sampling_strategy": "group_by_length",  # batches of like length: less padding
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": gpu,
    }


def train(
    trainer: Any,
    what: str,
    curve: Path | None,
    validated: Validated | None = None,
    names: Sequence[str] | None = None,
    check_first: Callable[[float], None] | None = None,
) -> list[dict[str, float]]:
    """Run a trainer to its end, from where an interrupted run of the same stage stopped.

    Args:
        trainer: with `resume.Resumable` mixed in.
        validated: validate as this says, on the trainer's validation rows, and end with the best
            weights; None ends with the last.
        names: of the rows that are trained on, for errors; None names blocks of packed text by number.
        check_first: called with the loss of step 1; what it raises ends the run.

    Returns:
        what the trainer logged at each step: `step`, `loss`, and more by trainer; `validation_loss`
        where that was measured. The same numbers
        go to MLflow while training runs, and to `curve` as CSV.

    Raises:
        Diverged: at the first step whose loss or gradient is not finite, or at such a validation.
    """
    from transformers import PrinterCallback

    with progress(what, total=_steps(trainer)) as advance:
        trainer.add_callback(_callback(trainer, what, advance, names, check_first))
        trainer.remove_callback(PrinterCallback)
        if validated is not None:
            settings = validated.validations, validated.patience
            trainer.add_callback(validation.callback(trainer, *settings))
        resume.train(trainer)
    if validated is None:
        _check_last(trainer, names)
    trainer.best.put_back(trainer.model)
    points: list[dict[str, float]] = trainer.points
    log.info("%s: %d steps, loss %.4f to %.4f", what, len(points), *_ends(points))
    if curve is not None:
        write_curve(points, curve)
    return points


def write_curve(points: Iterable[dict[str, float]], path: Path) -> None:
    """Write points as CSV with columns step, loss, validation_loss (empty where it was not measured),
    and the others in alphabetical order."""
    points = list(points)
    always = ["step", "loss", "validation_loss"]  # DVC draws no curve that lacks a column
    others = sorted({key for point in points for key in point}.difference(always))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*always, *others], lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)


# What trainers log that does not depend on the clock.
_KEPT = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
}


def _callback(
    trainer: Any,
    what: str,
    advance: Any,
    names: Sequence[str] | None,
    check_first: Callable[[float], None] | None,
) -> TrainerCallback:
    from transformers import TrainerCallback

    class Observer(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for point in trainer.points:  # of before an interruption: a run in MLflow has them all
                values = {name: value for name, value in point.items() if name != "step"}
                tracking.log_metrics(values, step=int(point["step"]))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "eval_loss" in logs:
                loss = float(logs["eval_loss"])
                if not math.isfinite(loss):
                    rows = _named(trainer.rows_of_step(), names)
                    raise Diverged(
                        f"step {state.global_step}: the validation loss is {loss}; lower the learning "
                        f"rate, or look at what was trained on in this step ({rows}) and at the "
                        "validation rows"
                    )
                trainer.points[-1]["validation_loss"] = round(loss, validation.DIGITS)
                tracking.log_metrics({"validation_loss": loss}, step=int(state.global_step))
                log.info("%s: step %d, validation loss %.4f", what, state.global_step, loss)
            if not logs or "loss" not in logs:
                return
            step = int(state.global_step)
            loss = float(logs["loss"])
            for quantity, value in (("loss", loss), ("gradient", logs.get("grad_norm", 0.0))):
                if not math.isfinite(value):
                    raise Diverged(
                        f"step {step}: the {quantity} is {value}; look at what was trained on in this "
                        f"step ({_named(trainer.rows_of_step(), names)}), or lower the learning rate "
                        f"({logs.get('learning_rate')} at this step)"
                    )
            if step == 1 and check_first:
                check_first(loss)
            kept = {name: float(logs[key]) for key, name in _KEPT.items() if key in logs}
            trainer.points.append({"step": step, **{key: round(kept[key], 6) for key in kept}})
            tracking.log_metrics(kept, step=step)
            advance(step, f"loss {loss:.4f}")

    return Observer()


def _check_last(trainer: Any, names: Sequence[str] | None) -> None:
    """Raise Diverged when the last update, which no loss and no validation saw, went wrong: what was
    trained on in the last step must have a loss still."""
    rows = trainer.rows_of_step()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    loss, *_ = trainer.prediction_step(trainer.model, trainer._prepare_inputs(batch), True)
    if not math.isfinite(float(loss)):
        raise Diverged(
            f"after the last step, {trainer.state.global_step}, the loss is {float(loss)}; lower the "
            f"learning rate, or look at what was trained on in this step ({_named(rows, names)})"
        )


MOST_NAMED = 32
"""Rows in an error."""


def _named(rows: Sequence[int], names: Sequence[str] | None) -> str:
    shown = [names[row] if names else str(row + 1) for row in rows[:MOST_NAMED]]
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return f"{'rows' if names else 'blocks'} {', '.join(shown)}{more}"


def _steps(trainer: Trainer) -> int:
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch: int = math.ceil(batches / trainer.args.gradient_accumulation_steps)
    return per_epoch * int(trainer.args.num_train_epochs)


def _ends(points: list[dict[str, float]]) -> tuple[float, float]:
    return (points[0]["loss"], points[-1]["loss"]) if points else (math.nan, math.nan)
