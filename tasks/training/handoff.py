"""A stage starts from what the stage before it made: checked on fixed prompts before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.lineage.console import log
from tasks.lineage.stage import GateError

PROMPTS = 4
"""How many conversations are compared; a pass over them costs less than a step."""

EXACT = 1e-5
"""Largest difference of a token's log probability where nothing was computed in another order.  None is
expected: adapters begin with a factor of zero, or with a scale of one."""

FOLDED = 1e-3
"""The same where an adapter went into the weights: products are then summed in another order."""


def next_tokens(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """Log probabilities of the token after each prompt, of shape (prompts, vocabulary), on the CPU.

    Without dropout; the model is left in the mode in which it was.
    """
    import torch

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        found = [
            torch.log_softmax(model(input_ids=batch).logits[0, -1].float(), -1).cpu()
            for batch in (torch.tensor([list(ids)], device=device) for ids in prompts)
        ]
    model.train(training)
    return torch.stack(found)


def check(before: Any, after: Any, tolerance: float, what: str, remedy: str) -> None:
    """Raise GateError unless two results of `next_tokens` are equal within a tolerance.

    Args:
        what: the model that `after` is of, as in "the start of sft".
        remedy: what to do when it does not hold.
    """
    apart = float((before - after).abs().max())
    if not apart <= tolerance:
        raise GateError(
            f"{what} is not the model that was handed on: log probabilities on fixed prompts differ by "
            f"up to {apart:.2g}, more than {tolerance:.0e}; {remedy}"
        )
    log.info("%s is the model that was handed on: they differ by %.2g at most", what, apart)
