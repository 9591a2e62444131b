"""A stage starts from what the stage before it made: checked on fixed prompts before the first step.

A stage that has trained writes beside the model what that model says of a few texts (`write`); the
stages that load it hold what they have loaded against that (`require`): hashes tell that files are what
was written, this tells that they were read as they were meant.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.lineage.console import log
from tasks.lineage.stage import GateError

PROMPTS = 4
"""How many conversations are compared; a pass over them costs less than a step."""

EXACT = 1e-5
"""Largest difference of a token's log probability where nothing was computed in another order.  None is
expected: adapters begin with a factor of zero, or with a scale of one."""

FOLDED = 1e-3
"""The same where products may be summed in another order: an adapter went into the weights, or another
process or processor computes."""

FILE = "handoff.json"
"""Beside a model: `dtype` that was computed in, `texts` as token ids, and `log_probs`, of each token
after the first."""

LONGEST = 64
"""Tokens of a text that are written."""

_DIGITS = 6

ROUNDED = 0.25
"""Largest mean difference of a token's log probability, in nats, where either side computed in bfloat16,
which moved Gemma 3 270M by 0.04."""

QUANTISED = 0.6
"""The same where weights went to NF4 in between, which moved Gemma 3 270M by 0.36 and the default by
0.09; larger models move less, and weights of half as much again move these two by 0.8 and 0.7."""


def write(model: Any, texts: Sequence[Sequence[int]], dtype: str, folder: Path) -> None:
    """Write what a model says of texts; before the folder's manifest is.

    Args:
        dtype: that was computed in (compute.dtype).
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [list(ids[:LONGEST]) for ids in texts[:PROMPTS] if len(ids) > 1]
    said = {"dtype": dtype, "texts": texts, "log_probs": _log_probs(model, texts)}
    (folder / FILE).write_text(json.dumps(said) + "\n", encoding="utf-8")


def require(
    model: Any, folder: Path, what: str, remedy: str, dtype: str, quantised: bool = False
) -> None:
    """Raise GateError unless a model says what `write` wrote in a folder; a folder without it is a base
    model's, which nobody here has trained.

    Args:
        what: the model, as in "the start of sft".
        remedy: what to do when it does not hold.
        dtype: that is computed in.
        quantised: whether the model's weights are and those that wrote were not.
    """
    file = folder / FILE
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"texts": []}
    if not said["texts"]:
        return
    pairs = zip(said["log_probs"], _log_probs(model, said["texts"]), strict=True)
    apart = [abs(one - other) for row in pairs for one, other in zip(*row, strict=True)]
    exact = said["dtype"] == dtype == "float32" and not quantised
    found = max(apart) if exact else statistics.fmean(apart)
    most = QUANTISED if quantised else FOLDED if exact else ROUNDED
    kind = "up to" if exact else "on average"
    if not found <= most:
        raise GateError(
            f"{what} is not the model that was handed on: log probabilities of the texts in {file} "
            f"differ by {kind} {found:.2g}, more than {most:g}; {remedy}"
        )
    log.info("%s is the model that was handed on: they differ by %s %.2g", what, kind, found)


def _log_probs(model: Any, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of each token of each text after the first; without dropout, and the model's mode stays."""
    import torch

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for ids in texts:
            batch = torch.tensor([list(ids)], device=device)
            logits = model(input_ids=batch).logits[0, -len(ids) : -1]  # virtual tokens come before
            chosen = torch.log_softmax(logits.float(), -1).gather(1, batch[0, 1:, None])
            found.append([round(value, _DIGITS) for value in chosen[:, 0].tolist()])
    model.train(training)
    return found


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
