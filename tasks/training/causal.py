"""Next-token training of all weights, for continued pretraining and for the scratch model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage.console import log
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

    if not keeps_apart(model):
        log.warning(
            "%s: attention of this kind sees across the texts of a block, so each is learned behind the "
            "ones before it",
            model.config.model_type,
        )
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


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether a text in a block of `examples.packed_blocks` is computed as if it stood alone: of most
    kinds of attention transformers tells by the positions, of some it does not; two short texts show."""
    import torch

    first, second = (
        torch.arange(start, stop, device=model.device)[None] % model.config.vocab_size
        for start, stop in ((3, 11), (11, 21))
    )
    places = [torch.arange(text.shape[1], device=model.device)[None] for text in (first, second)]
    training = model.training
    model.eval()
    with torch.no_grad():
        packed = {"input_ids": [first, second], "position_ids": places}
        together = model(
            **{name: torch.cat(parts, 1) for name, parts in packed.items()}, use_cache=False
        ).logits[:, first.shape[1] :]
        alone = model(input_ids=second, position_ids=places[1], use_cache=False).logits
    model.train(training)
    scale = float(alone.abs().max())
    return bool((together - alone).abs().max() <= 1e-2 * scale)
