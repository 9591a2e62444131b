"""What an engine is, and what all of them agree on: when an answer ends, and how long it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from tasks.lineage.stage import FAULT, StageError

Ids = list[int]
OnDone = Callable[[int], None]
"""Called with the number of prompts that have just been answered."""


class Engine(Protocol):
    """A loaded model that answers prompts."""

    def generate(self, prompts: Sequence[Ids], max_new_tokens: int, on_done: OnDone) -> list[Ids]:
        """The most likely token at each step, until an end token or `max_new_tokens`.

        Args:
            prompts: token ids, with the generation prompt at the end.
            max_new_tokens: the longest answer.

        Returns:
            For each prompt the answer's ids, without the prompt and without the end token.

        Raises:
            StageError: when a prompt is empty, or fills the model's context.
        """


class Likelihood(NamedTuple):
    """How likely a model finds a reference answer."""

    nll: float
    """Negative log-likelihood of the scored tokens, summed, in nats."""
    tokens: int
    """Number of scored tokens."""


class Unavailable(StageError):
    """An engine that is not installed, or has no model of its format."""

    exit_code = FAULT


def rooms(prompts: Sequence[Ids], max_new_tokens: int, context: int) -> list[int]:
    """How many tokens each answer may have, asked before anything is computed.

    Raises:
        StageError: when a prompt is empty, or leaves no room for one token.
    """
    for position, prompt in enumerate(prompts):
        if not prompt:
            raise StageError(
                f"prompt {position + 1} of {len(prompts)} has no tokens; the model's chat template "
                "writes nothing for it: name another one in base.chat_template in params.yaml"
            )
    return [room(len(prompt), max_new_tokens, context) for prompt in prompts]


def room(length: int, max_new_tokens: int, context: int) -> int:
    """How many tokens an answer may have behind a prompt of `length` tokens.

    Raises:
        StageError: when there is no room for one.
    """
    if length >= context:
        raise StageError(
            f"a prompt of {length} tokens leaves no room for an answer in the model's context of "
            f"{context}; lower format.max_tokens in params.yaml"
        )
    return min(max_new_tokens, context - length)


def until(ids: Ids, ends: Iterable[int]) -> Ids:
    """The ids before the first end token."""
    return next((ids[:index] for index, token in enumerate(ids) if token in ends), ids)


def as_set(ids: int | list[int] | None) -> set[int]:
    """End tokens as they stand in a model's settings: none, one or several."""
    return {ids} if isinstance(ids, int) else set(ids or ())
