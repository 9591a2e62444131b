"""Next-token training of all weights, for continued pretraining and for the scratch model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.params import Compute, Optimiser, Validated
from tasks.training import loop, passes, resume
from tasks.training.validation import Best

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def train_causal(
    model: PreTrainedModel,
    blocks: Dataset,
    settings: Optimiser,
    compute: Compute,
    length: dict[str, int],
    curve: Path | None,
    validation: Dataset | None = None,
) -> tuple[list[dict[str, float]], Best]:
    """Train in place.

    Args:
        length: {"num_train_epochs": n} or {"max_steps": n}.
        validation: blocks held out; with them, `settings` says how often they are looked at, and the
            best weights are what remains.

    Returns:
        what was logged at each step, and the lowest validation loss.
    """
    from transformers import Trainer, TrainingArguments, default_data_collator

    class CausalTrainer(resume.Resumable, passes.NextToken, Trainer):  # type: ignore[misc]
        """Goes on where a killed run stopped."""

        pass_tokens = passes.budget(compute)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = loop.arguments(settings, compute, Path(scratch)) | length
        trainer: Any = CausalTrainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=blocks,
            eval_dataset=validation,
            data_collator=default_data_collator,
        )
        validated = settings if isinstance(settings, Validated) and validation else None
        points = loop.train(trainer, "next-token training", curve, validated)
    return points, trainer.best
