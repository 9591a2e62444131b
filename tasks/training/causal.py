"""Next-token training of all weights, for continued pretraining and for the scratch model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.params import Compute, Optimiser
from tasks.training import loop, passes, resume

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
) -> list[dict[str, float]]:
    """Train in place. `length` is {"num_train_epochs": n} or {"max_steps": n}."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    class CausalTrainer(resume.Resumable, passes.NextToken, Trainer):  # type: ignore[misc]
        """Goes on where a killed run stopped."""

        pass_tokens = compute.pass_tokens

    with tempfile.TemporaryDirectory() as scratch:
        arguments = loop.arguments(settings, compute, Path(scratch)) | length
        trainer: Any = CausalTrainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=blocks,
            data_collator=default_data_collator,
        )
        return loop.train(trainer, "next-token training", curve)
