"""The best weights of a run, not the last: validation while training, and stopping early.

Validation loss falls, and rises again when a model begins to learn its training rows by heart
(Prechelt 1998, Early Stopping - But When?).  The weights with the lowest loss are kept beside the
trained ones, in memory, and put back in the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.lineage.console import log
from tasks.training import weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

DIGITS = 6
"""Losses are compared as they are written, so that what is kept can be read off the curve."""


@dataclass
class Best:
    """The lowest validation loss so far."""

    loss: float = math.inf
    step: int = 0
    waited: int = 0
    """Validations since then."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """What was trained, at that step."""

    def see(self, loss: float, step: int, model: Any) -> None:
        """Take another validation into account."""
        if loss < self.loss:
            kept = {name: value.detach().cpu().clone() for name, value in weights.trained(model)}
            self.loss, self.step, self.waited, self.weights = loss, step, 0, kept
        else:
            self.waited += 1

    def put_back(self, model: Any) -> None:
        """Give the model the best weights."""
        if self.weights:
            weights.put(self.weights, model)

    def document(self) -> dict[str, Any]:
        """All but the weights; JSON has no infinity."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"loss": loss, "step": self.step, "waited": self.waited}

    @classmethod
    def of(cls, document: Mapping[str, Any], kept: Mapping[str, Tensor]) -> Best:
        loss = math.inf if document["loss"] is None else document["loss"]
        return cls(loss, document["step"], document["waited"], dict(kept))


def steps(validations: int, last: int) -> set[int]:
    """After which of `last` steps to validate: evenly spread, the last one always among them."""
    return {math.ceil(number * last / validations) for number in range(1, validations + 1)}


def callback(trainer: Any, validations: int, patience: int | None) -> TrainerCallback:
    """Validates, notes the best, and ends training after `patience` validations without a better one.

    Args:
        trainer: with `best`, `points` and `stopped_as_asked`, and validation rows.
        validations: in all; at least 1.
        patience: None trains to the end.
    """
    from transformers import TrainerCallback

    class Validation(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.due = steps(validations, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_evaluate = state.global_step in self.due

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
        ) -> None:
            loss = round(float(metrics["eval_loss"]), DIGITS)
            trainer.best.see(loss, state.global_step, trainer.model)
            if patience is not None and trainer.best.waited >= patience:
                log.info("no better validation loss for %d times: stopping early", patience)
                control.should_training_stop = True
                control.should_save = False  # nothing is left to go on with
                trainer.stopped_as_asked = False  # a signal in this step finds the run complete

    return Validation()
