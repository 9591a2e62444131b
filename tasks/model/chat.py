"""The one renderer of conversations, for training, evaluation, export and serving.

The template is the model's own, compiled by transformers and called with no variables of ours, as any
server calls it: a model folder alone says how its model is asked.  Which tokens are supervised is found
from the rendered text, so that templates with and without generation markers get the same mask: what
the template adds to a prompt when the answer is known is the answer, its end of turn included.

Some templates rewrite what has been said once the conversation goes on: Qwen 3 drops the thoughts of
earlier answers.  The last answer is then still asked as it is trained, so it is supervised; an earlier
one is supervised only where the template keeps it, and is context otherwise.  A conversation whose
last answer itself is not kept is refused.  Qwen 3 also writes an empty block of thoughts before an
answer that has none, which is part of what the model learns to say; a copy of the template
(base.chat_template) that begins with `{% set enable_thinking = false %}` moves it into the prompt.

A template that reads the clock would make tomorrow's prompts others than today's, and is refused where
it does so.  Nothing is ever cut.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar

from tasks.lineage.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")

BATCH = 256
"""Conversations that are tokenised at once: what is held in memory is bounded by it."""


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation; mask 1 where the model is trained to predict the token."""

    ids: list[int]
    mask: list[int]
    ends_supervised: bool = True
    """Whether the model learns to stop: the last supervised token of each answer, white space aside,
    is a control token. False for a template that ends an answer with mere text, a line break say, or
    with a token that the tokenizer does not know: no engine would stop there."""
    answers_left_out: int = 0
    """Earlier answers that are context alone, since the template rewrites them."""


class ChatError(StageError):
    """A conversation that this model's template cannot express, or a template that cannot be used.

    Attributes:
        reason: `special_token`, `not_renderable`, `reads_clock`, `history_rewritten`,
            `prompt_retokenised`; of a model `no_template`, `contract_broken`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ChatError], tuple[str, str]]:
        return ChatError, (self.reason, str(self))  # or it could not leave a process


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, with its chat template.

    Raises:
        ChatError: when the folder's tokenizer has no template, or one that reads the clock with and
            without a system turn.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ChatError(
            "no_template",
            f"the tokenizer in {folder} has no chat template; "
            "name a Jinja file in base.chat_template, or take the model's instruct variant",
        )
    asked = render_prompts([[_USER], [_SYSTEM, _USER]], tokenizer)
    faults = [fault for fault in asked if isinstance(fault, ChatError)]
    if len(faults) == len(asked):
        for fault in faults:
            if fault.reason == "reads_clock":
                raise fault
    return tokenizer


def render_many(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerFast
) -> list[Rendered | ChatError]:
    """Token ids of conversations, the answers supervised, in their order.

    Returns:
        For each conversation what `render` returns, or the error that it raises.

    Raises:
        ChatError: when the template itself is no Jinja.
    """
    renderer = _Renderer(tokenizer)
    found: list[Rendered | ChatError] = []
    for start in range(0, len(conversations), BATCH):
        found += renderer.render(conversations[start : start + BATCH])
    return found


def all_or_raise(found: Iterable[T | ChatError]) -> list[T]:
    """What was rendered, where every conversation must be.

    Raises:
        ChatError: the first of them.
    """
    rendered: list[T] = []
    for one in found:
        if isinstance(one, ChatError):
            raise one
        rendered.append(one)
    return rendered


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> Rendered:
    """Token ids of a conversation, the answers supervised; for many, `render_many` is faster.

    Raises:
        ChatError: when content holds a special token, or the template refuses the conversation, reads
            the clock, or does not keep the last answer as it was asked, or an answer changes how its
            prompt is tokenised, so that what is trained on would not be what is asked at inference.
    """
    [found] = all_or_raise(render_many([messages], tokenizer))
    return found


def render_prompts(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerFast
) -> list[list[int] | ChatError]:
    """Token ids of turns that ask for an answer, or why there are none, in their order."""
    renderer = _Renderer(tokenizer)
    found: list[list[int] | ChatError] = []
    for start in range(0, len(conversations), BATCH):
        found += renderer.prompts(conversations[start : start + BATCH])
    return found


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids of turns that ask for an answer.

    Raises:
        ChatError: as `render`.
    """
    [found] = all_or_raise(render_prompts([messages], tokenizer))
    return found


@dataclass(frozen=True)
class _Answer:
    turn: int
    """Counted from 1."""
    prompt: int
    """Number of the text that asks for it."""
    answered: int
    """Number of the text that ends with it."""


@dataclass(frozen=True)
class _Plan:
    """A conversation as texts that wait to be tokenised."""

    full: int
    answers: list[_Answer]
    left_out: int


class _Renderer:
    """A tokenizer's template, compiled, and what must be known of its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        special = special_tokens(tokenizer)
        # the longest first, so that the error names the whole token
        tokens = sorted(special, key=lambda token: (-len(token), token))
        self._forbidden = re.compile("|".join([*map(re.escape, tokens), "[\ud800-\udfff]"]))
        self._source: str = tokenizer.chat_template
        self._template = _compiled(self._source)
        self._variables: dict[str, Any] = {
            "tools": None,
            "documents": None,
            **tokenizer.special_tokens_map,
            "strftime_now": _refuse_clock,
        }
        self._backend = tokenizer.backend_tokenizer
        # Not every control token is marked special; what the template writes and the tokenizer keeps
        # whole is one as well.
        added = tokenizer.added_tokens_decoder.items()
        self._ends = {
            number
            for number, token in added
            if str(token).strip() and (token.special or str(token) in self._source)
        } | set(tokenizer.all_special_ids)
        self._blank: dict[int, bool] = {}

    def render(self, conversations: Iterable[Sequence[Message]]) -> list[Rendered | ChatError]:
        texts: dict[str, int] = {}  # each once: the two sides of a preference share their prompt
        plans = [self._planned(messages, texts) for messages in conversations]
        ids = self._encoded(texts)
        return [plan if isinstance(plan, ChatError) else self._masked(plan, ids) for plan in plans]

    def prompts(self, conversations: Iterable[Sequence[Message]]) -> list[list[int] | ChatError]:
        texts: list[str] = []
        faults: list[ChatError | None] = []
        for messages in conversations:
            try:
                self._check(messages)
                texts.append(self._text(messages, ask=True))
                faults.append(None)
            except ChatError as error:
                faults.append(error)
        ids = iter(self._encoded(texts))
        return [fault or next(ids) for fault in faults]

    def _planned(self, messages: Sequence[Message], texts: dict[str, int]) -> _Plan | ChatError:
        """The texts of a conversation, numbered in `texts`, and which of them ask for what."""
        try:
            self._check(messages)
            full = self._text(messages, ask=False)
            last = _last_answer(messages)
            kept = []
            for index in range(last + 1):
                if messages[index]["role"] == "assistant" and (index or index == last):
                    prompt = self._text(messages[:index], ask=True)
                    whole = index + 1 == len(messages)
                    answered = full if whole else self._text(messages[: index + 1], ask=False)
                    if answered.startswith(prompt) and full.startswith(answered):
                        kept.append((index + 1, prompt, answered))
                    elif index == last:
                        raise _rewritten(index + 1)
        except ChatError as error:
            return error
        answers = [
            _Answer(
                turn,
                texts.setdefault(prompt, len(texts)),
                texts.setdefault(answered, len(texts)),
            )
            for turn, prompt, answered in kept
        ]
        asked = sum(message["role"] == "assistant" for message in messages)
        return _Plan(texts.setdefault(full, len(texts)), answers, asked - len(answers))

    def _masked(self, plan: _Plan, ids: Sequence[list[int]]) -> Rendered | ChatError:
        """The tokens of a conversation. Counts of tokens say where an answer begins and ends, not
        offsets, which some tokenizers give white space none of."""
        full = ids[plan.full]
        mask = [0] * len(full)
        ends = True
        for answer in plan.answers:
            start = len(ids[answer.prompt])
            if full[:start] != ids[answer.prompt]:
                return _retokenised(answer.turn)
            # where the answer's last white space flows into the next turn, that token is neither's
            end = _common(full, ids[answer.answered])
            mask[start:end] = [1] * (end - start)
            ends = ends and self._ends_turn(full, start, end)
        return Rendered(list(full), mask, ends, plan.left_out)

    def _ends_turn(self, ids: Sequence[int], start: int, end: int) -> bool:
        while end > start and ids[end - 1] not in self._ends and self._is_blank(ids[end - 1]):
            end -= 1
        return end > start and ids[end - 1] in self._ends

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            text = self._backend.decode([token], skip_special_tokens=False)
            self._blank[token] = not text.strip()
        return self._blank[token]

    def _encoded(self, texts: Iterable[str]) -> list[list[int]]:
        # a tokenizer may be stored with a length to cut or to fill up to
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _text(self, messages: Sequence[Message], ask: bool) -> str:
        if not messages:
            raise ChatError("not_renderable", "an answer has no turn before it; add what was asked")
        try:
            text: str = self._template.render(
                messages=messages, add_generation_prompt=ask, **self._variables
            )
        except ChatError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            raise self._refusal(error) from None
        return text

    def _refusal(self, error: Exception) -> ChatError:
        said = str(error)
        # What a template says may quote the row; what stands in the template itself does not.
        why = said if said and said in self._source else type(error).__name__
        return ChatError(
            "not_renderable",
            f"the template refuses the conversation: {why}; "
            "change its turns, or use another template (base.chat_template)",
        )

    def _check(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if match := self._forbidden.search(message["content"]):
                if "\ud800" <= match[0] <= "\udfff":
                    raise ChatError(
                        "not_renderable",
                        f"the {message['role']} turn holds a lone surrogate, which is no character; "
                        "remove it from the text",
                    )
                raise ChatError(
                    "special_token",
                    f"the {message['role']} turn holds the special token {match[0]}, which would be "
                    "read as the template's own; remove it from the text",
                )


def _last_answer(messages: Sequence[Message]) -> int:
    """Its index, or -1."""
    index = len(messages) - 1
    while index >= 0 and messages[index]["role"] != "assistant":
        index -= 1
    return index


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    if left[: len(right)] == right:
        return len(right)
    return next(i for i, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)


def _rewritten(turn: int) -> ChatError:
    return ChatError(
        "history_rewritten",
        f"the template does not keep turn {turn} as it was asked; "
        "use a template that renders history unchanged (base.chat_template)",
    )


def _retokenised(turn: int) -> ChatError:
    return ChatError(
        "prompt_retokenised",
        f"turn {turn} changes how its prompt is tokenised; remove white space where it begins "
        "and where the turn before it ends, or use a template that ends the prompt with a "
        "special token (base.chat_template)",
    )


@functools.lru_cache
def _compiled(source: str) -> Any:
    """transformers' own environment: its sandbox, filters, functions and generation markers."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source)
    except TemplateError as error:
        raise ChatError(
            "not_renderable",
            f"the chat template is no Jinja: {error}; mend it, or name another in base.chat_template",
        ) from None


def _refuse_clock(form: str) -> NoReturn:
    """Stands for `strftime_now`, which templates ask for today's date."""
    raise ChatError(
        "reads_clock",
        "the template writes today's date, so that tomorrow's prompts would not be those that were "
        "trained; name a copy in base.chat_template that has a fixed date in place of strftime_now",
    )


_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_USER: Message = {"role": "user", "content": "Where is the parcel?"}

FIXTURES: tuple[tuple[Message, ...], ...] = (
    (
        _USER,
        {"role": "assistant", "content": '{"status":"on its way"}'},
    ),
    (
        _SYSTEM,
        {"role": "user", "content": "Grüße: 2 × 40' HC, 12.5 °C\n\nsecond line"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "done"},
    ),
    (
        {"role": "user", "content": "  Two  spaces,\ta tab, and a space at the end "},
        {"role": "assistant", "content": " kept \n"},
    ),
    (
        {"role": "user", "content": "0 12 345 6789 10111213 3.14 -1e6 2026-07-06"},
        {"role": "assistant", "content": "MSKU 123456-7"},
        {"role": "user", "content": "日本語 العربية e\u0301 \U0001f69a"},
        {"role": "assistant", "content": "Ω → 漢字 ✅"},
        {"role": "user", "content": "if x:\n    return {'a': [1, 2]}"},
        {"role": "assistant", "content": "<b>a & b</b>\n\n- one\n- two"},
    ),
)


def contract(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What must hold wherever the model is used: template, special tokens, and what fixed
    conversations become. A template that cannot express a fixture (no system turn, say) has null."""
    return {
        "template_sha256": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        "special_tokens": {
            token: tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)
        },
        "fixtures": [
            None
            if isinstance(rendered, ChatError)
            else {"messages": list(messages), "ids": rendered.ids, "mask": rendered.mask}
            for messages, rendered in zip(FIXTURES, render_many(FIXTURES, tokenizer), strict=True)
        ],
    }


def check_contract(agreed: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """See that a tokenizer still renders chats as was agreed when the model was trained.

    Args:
        agreed: what `contract` returned then, as read back from contract.json.

    Raises:
        ChatError: `contract_broken`, with every difference and where each begins.
    """
    found = contract(tokenizer)
    differences = []
    if agreed["template_sha256"] != found["template_sha256"]:
        differences.append(
            f"template_sha256 is {found['template_sha256'][:12]}, not {agreed['template_sha256'][:12]}"
        )
    before, now = agreed["special_tokens"], found["special_tokens"]
    differences += [
        f"special token {token} is {now.get(token, 'none')}, not {before.get(token, 'none')}"
        for token in sorted({*before, *now})
        if before.get(token) != now.get(token)
    ]
    if len(agreed["fixtures"]) != len(found["fixtures"]):
        differences.append(f"{len(found['fixtures'])} fixtures, not {len(agreed['fixtures'])}")
    for number, (old, new) in enumerate(zip(agreed["fixtures"], found["fixtures"], strict=False)):
        if old != new:
            differences.append(f"fixture {number} {_difference(old, new)}")
    if differences:
        raise ChatError(
            "contract_broken",
            f"chats are rendered otherwise than was agreed: {'; '.join(differences)}; "
            "run `dvc repro format`, or bring back the tokenizer and template that were trained with",
        )


def _difference(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    if old is None:
        return "can be rendered, and could not"
    if new is None:
        return "cannot be rendered, and could"
    if old["messages"] != new["messages"]:
        return "is another conversation"
    key = "ids" if old["ids"] != new["ids"] else "mask"
    place = _common(new[key], old[key])
    values = [row[key][place] if place < len(row[key]) else "the end" for row in (new, old)]
    return f"differs in {key}[{place}]: {values[0]}, not {values[1]}"


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Every token that text must not hold, sorted: also those that have no name in the tokenizer's
    settings, as the headers of Llama 3, which `all_special_tokens` leaves out."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted(
        {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    )
