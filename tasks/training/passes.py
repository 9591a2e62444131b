"""A batch of the optimiser goes through the model in passes, and the trainers that do so.

What a step learns from is `batch_size` x `gradient_accumulation` rows.  How many of them go through
the model at once decides memory and speed, and no more than the last bits of the result, but for
dropout, which each pass draws anew.  A pass takes rows of like length, as many as a budget of tokens
holds, padding counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tasks.params import Compute
from tasks.training.examples import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


def budget(compute: Compute) -> int | None:
    """Tokens of a pass, of a `compute` that `machine.settle` has resolved."""
    assert compute.pass_tokens != "auto"
    return compute.pass_tokens


def split(
    batch: Mapping[str, Tensor], tokens: int | None, virtual: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Passes of a batch: its rows, the shortest first, and no more padding than each pass needs.

    Args:
        batch: of (rows, length, ...) with `attention_mask` where rows are padded on the right, and of
            (rows,) what belongs to a row as a whole.
        tokens: of a pass at most, padding counted; a longer row is a pass of its own.  None: one pass.
        virtual: tokens that the model puts before each row, which count too.
    """
    width = batch["input_ids"].shape[1]
    if tokens is None:
        yield dict(batch)
        return
    mask = batch.get("attention_mask")
    rows = len(batch["input_ids"])
    lengths = [width] * rows if mask is None else mask.sum(1).tolist()
    chosen: list[int] = []
    for row in sorted(range(rows), key=lambda row: lengths[row]):
        if chosen and (len(chosen) + 1) * (virtual + lengths[row]) > tokens:
            yield _rows(batch, chosen, lengths[chosen[-1]])
            chosen = []
        chosen.append(row)
    yield _rows(batch, chosen, lengths[chosen[-1]])


def _rows(batch: Mapping[str, Tensor], rows: list[int], length: int) -> dict[str, Tensor]:
    return {
        name: value[rows, :length] if value.dim() > 1 else value[rows]
        for name, value in batch.items()
    }


def _supervised(batch: Mapping[str, Tensor]) -> Any:
    """How many tokens of a batch carry a loss; None for pairs, whose passes know their share."""
    return batch["labels"][:, 1:].ne(IGNORED).sum() if "labels" in batch else None


class InPasses:
    """Mixed into a trainer of transformers or TRL, before it."""

    pass_tokens: int | None = None
    _noted: dict[str, list[Tensor]]

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over each pass; the losses add up to the batch's."""
        import torch

        losses = [
            super(InPasses, self).training_step(model, part, num_items_in_batch)  # type: ignore[misc]
            for part in self.passes(inputs)
        ]
        return torch.stack(losses).sum()

    def passes(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        return split(inputs, self.pass_tokens, self.virtual_tokens())

    def virtual_tokens(self: Any) -> int:
        """That the model puts before each sequence."""
        config = getattr(self.accelerator.unwrap_model(self.model), "active_peft_config", None)
        return getattr(config, "num_virtual_tokens", 0)

    def prediction_step(
        self: Any, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss alone, the sum over passes as in training; there are no logits to hand on."""
        import torch

        inputs = self._prepare_inputs(inputs)
        items = _supervised(inputs)
        with torch.no_grad():
            losses = [
                self.compute_loss(model, part, num_items_in_batch=items)
                for part in self.passes(inputs)
            ]
        return torch.stack(losses).sum(), None, None

    def note(self, **values: Tensor) -> None:
        """Values by row or token, of which the next log has the mean."""
        if "_noted" not in vars(self):
            self._noted = {}
        for name, value in values.items():
            self._noted.setdefault(name, []).append(value.detach().float())

    def log(self: Any, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        import torch

        noted, self._noted = vars(self).get("_noted", {}), {}
        prefix = "" if self.model.training else "eval_"
        for name, values in noted.items():
            logs[prefix + name.replace("__", "/")] = float(torch.cat(values).mean())
        super().log(logs, *arguments, **named)  # type: ignore[misc]


class NextToken(InPasses):
    """Learns the supervised tokens, without the logits of others."""

    def compute_loss(
        self: Any,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As TRL's SFTTrainer computes it: the mean over the supervised tokens of the whole batch."""
        from tasks.training import losses

        if "_supported" not in vars(self):
            self._supported = losses.supports(self.accelerator.unwrap_model(model))
        rest = dict(inputs)
        labels = rest.pop("labels")
        items = _supervised(inputs) if num_items_in_batch is None else num_items_in_batch
        with self.accelerator.autocast():
            loss, likeliest = losses.supervised(model, rest, labels, float(items), self._supported)
        self.note(mean_token_accuracy=likeliest)
        return (loss, {}) if return_outputs else loss
