"""How a question is put to a model that was not trained for it: an instruction, solved examples,
retrieved text.

All of it has to fit into the model's context, with room for the answer.  What does not is left out,
the least useful first, and counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.evaluation.metrics import words
from tasks.evaluation.rows import Row
from tasks.model import chat
from tasks.model.engines import Ids
from tasks.params import QUESTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRIED = 64
"""Validation rows on which prompts are compared, at most."""
PLAIN = "as the data asks"
"""The name of no prompt at all."""
INTRODUCTION = "These passages may help:"


@dataclass(frozen=True)
class Question:
    """A row as it is put to a model."""

    row: Row
    prompt: str | None = None
    """A text with QUESTION in it, for the last turn; None leaves the turn as it is."""
    examples: tuple[Row, ...] = ()
    """Solved rows that stand as earlier turns of the conversation, the least useful first."""
    passages: tuple[str, ...] = ()
    """That stand before the question, the least useful last."""

    @property
    def turns(self) -> list[Any]:
        """The conversation that asks for the answer."""
        system = [turn for turn in self.row.prompt if turn["role"] == "system"]
        asked = [turn for turn in self.row.prompt if turn["role"] != "system"]
        before = [
            turn
            for example in self.examples
            for turn in example.messages
            if turn["role"] != "system"
        ]
        return [*system, *before, *asked[:-1], {**asked[-1], "content": self._asked(asked[-1])}]

    @property
    def solved(self) -> list[Any]:
        """The conversation with the expected answer."""
        return [*self.turns, self.row.messages[-1]]

    def shorter(self) -> Question | None:
        """Without its least useful part; None where nothing is left to leave out."""
        if self.examples:
            return replace(self, examples=self.examples[1:])
        if self.passages:
            return replace(self, passages=self.passages[:-1])
        return replace(self, prompt=None) if self.prompt is not None else None

    def _asked(self, turn: Any) -> str:
        text = str(turn["content"])
        if self.prompt is not None:
            text = self.prompt.replace(QUESTION, text)
        if self.passages:
            text = "\n\n".join([INTRODUCTION, *self.passages, text])
        return text


@dataclass(frozen=True)
class Fitted:
    """Questions as token ids."""

    questions: list[Question]
    prompts: list[Ids]
    left_out: int
    """Examples, passages and instructions that did not fit."""


def fit(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, tokens: int) -> Fitted:
    """Render questions in at most `tokens` tokens each, leaving out what does not fit.

    A bare question that is longer is kept as it is: whether there is room for an answer is for the
    engine to say.

    Raises:
        ChatError: when the template refuses even the bare question.
    """
    asked = list(questions)
    prompts: list[Ids] = [[] for _ in asked]
    waiting = list(range(len(asked)))
    left_out = 0
    while waiting:
        rendered = chat.render_prompts([asked[at].turns for at in waiting], tokenizer)
        again = []
        for at, found in zip(waiting, rendered, strict=True):
            shorter = asked[at].shorter()
            if shorter and (isinstance(found, chat.ChatError) or len(found) > tokens):
                asked[at] = shorter
                left_out += 1
                again.append(at)
            elif isinstance(found, chat.ChatError):
                raise found
            else:
                prompts[at] = found
        waiting = again
    return Fitted(asked, prompts, left_out)


def examples(solved: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """Rows to show before each question: drawn, as many different answers as there are, no two
    questions of the same words."""
    drawn = random.Random(seed).sample(list(solved), len(solved))
    by_answer: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for row in drawn:
        said = " ".join(words(row.question))
        if said not in seen:
            seen.add(said)
            by_answer.setdefault(row.expected, []).append(row)
    chosen: list[Row] = []
    while len(chosen) < count and by_answer:
        for answer in list(by_answer):
            chosen.append(by_answer[answer].pop())
            if not by_answer[answer]:
                del by_answer[answer]
    return tuple(chosen[:count])


@dataclass(frozen=True)
class Tried:
    """A prompt on the validation rows."""

    score: float
    """Mean of the primary metric."""
    nll: float
    """Of the expected answers, in nats."""


def best(
    prompts: Sequence[str | None],
    validation: Sequence[Row],
    seed: int,
    attempt: Callable[[list[Question]], Tried],
) -> tuple[str | None, dict[str, float]]:
    """The prompt that does best on at most TRIED validation rows, by score, then by how likely the
    model finds the expected answers, then the first; and the score of each.

    One prompt alone is not tried, nor is any without validation rows.
    """
    if len(prompts) == 1 or not validation:
        return prompts[0], {}
    drawn = random.Random(seed).sample(list(validation), min(TRIED, len(validation)))
    tried = {prompt: attempt([Question(row, prompt) for row in drawn]) for prompt in prompts}
    chosen = max(prompts, key=lambda prompt: (tried[prompt].score, -tried[prompt].nll))
    return chosen, {prompt or PLAIN: one.score for prompt, one in tried.items()}


def mean(outcomes: Sequence[float]) -> float:
    """Of the rows that a metric speaks of; 0 where it speaks of none."""
    found = [outcome for outcome in outcomes if not math.isnan(outcome)]
    return round(sum(found) / len(found), 6) if found else 0.0
