"""The one renderer of conversations, for training, evaluation, export and serving.

The template is the model's own.  Which tokens are supervised is found from the rendered text, so that
templates without generation markers work too: what the template adds when an assistant turn is appended
to its prompt is the answer, end of turn included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation; mask 1 where the model is trained to predict the token."""

    ids: list[int]
    mask: list[int]


class ChatError(ValueError):
    """A conversation that this model's template cannot express."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, with its chat template.

    Raises:
        ChatError: when the folder's tokenizer has no template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ChatError(
            f"the tokenizer in {folder} has no chat template; "
            "name a Jinja file in base.chat_template, or take the model's instruct variant"
        )
    return tokenizer


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> Rendered:
    """Token ids of a conversation, every assistant turn supervised.

    Raises:
        ChatError: when content holds a special token, or the template rewrites earlier turns, or the
            answer changes how its prompt is tokenised, so that what is trained on would not be what
            is asked at inference.
    """
    _refuse_special_tokens(messages, tokenizer)
    full = _text(messages, tokenizer, ask=False)
    spans, prompts = [], []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = _text(messages[:index], tokenizer, ask=True)
            answered = _text(messages[: index + 1], tokenizer, ask=False)
            if not (answered.startswith(prompt) and full.startswith(answered)):
                raise ChatError(
                    f"the template does not keep turn {index + 1} as it was asked; "
                    "use a template that renders history unchanged (base.chat_template)"
                )
            spans.append((len(prompt), len(answered)))
            prompts.append((index + 1, prompt))
    encoded = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    for turn, prompt in prompts:
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if encoded["input_ids"][: len(asked)] != asked:
            raise ChatError(
                f"turn {turn} changes how its prompt is tokenised; remove white space where it begins "
                "and where the turn before it ends, or use a template that ends the prompt with a "
                "special token (base.chat_template)"
            )
    mask = [
        int(any(start <= first < end and last > first for start, end in spans))
        for first, last in encoded["offset_mapping"]
    ]
    return Rendered(ids=list(encoded["input_ids"]), mask=mask)


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids of turns that ask for an answer."""
    _refuse_special_tokens(messages, tokenizer)
    text = _text(messages, tokenizer, ask=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


FIXTURES: tuple[tuple[Message, ...], ...] = (
    (
        {"role": "user", "content": "Where is the parcel?"},
        {"role": "assistant", "content": '{"status":"on its way"}'},
    ),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße: 2 × 40' HC, 12.5 °C\n\nsecond line"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "done"},
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
        "fixtures": [_fixture(messages, tokenizer) for messages in FIXTURES],
    }


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Every token that text must not hold, sorted: also those that have no name in the tokenizer's
    settings, as the headers of Llama 3, which `all_special_tokens` leaves out."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted(
        {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    )


def _fixture(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any] | None:
    from jinja2 import TemplateError

    try:
        rendered = render(messages, tokenizer)
    except (ChatError, TemplateError):
        return None
    return {"messages": list(messages), "ids": rendered.ids, "mask": rendered.mask}


def _text(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, ask: bool) -> str:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    return str(text)


def _refuse_special_tokens(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> None:
    special = special_tokens(tokenizer)
    for message in messages:
        for token in special:
            if token in message["content"]:
                raise ChatError(
                    f"the {message['role']} turn holds the special token {token}, which would be "
                    "read as the template's own; remove it from the text"
                )
