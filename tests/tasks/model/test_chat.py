"""One renderer for all templates: the answer alone is supervised, and is asked for as it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tasks.model import chat, scratch
from tasks.model.chat import ChatError, Message
from tasks.params import Params

SPECIAL = [
    "<|im_start|>", "<|im_end|>",
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<bos>",
    "<s>", "</s>", "[INST]", "[/INST]",
]  # fmt: skip

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen gives a system turn to conversations that have none.
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA_3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Gemma 3 puts the system turn before the first user turn; Gemma 2 refuses it.
GEMMA_3 = (
    "<bos>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ first if loop.first else '' }}{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA_2 = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + (GEMMA_3)
)
MISTRAL = (
    "<s>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message.role == 'user' %}"
    "[INST] {{ first if loop.first else '' }}{{ message.content }}[/INST]"
    "{% else %} {{ message.content | trim }}</s>{% endif %}{% endfor %}"
)
# Drops what the assistant thought in earlier turns, as reasoning models do.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if loop.last else message.content.split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Asks for thinking in the prompt, and leaves no trace of it when the turn is answered.
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")

# template, what it writes before and after an answer
STYLES = {
    "scratch": (scratch.TEMPLATE, "", "<|end|>"),
    "chatml": (CHATML, "", "<|im_end|>\n"),
    "qwen": (QWEN, "", "<|im_end|>\n"),
    "llama 3": (LLAMA_3, "", "<|eot_id|>"),
    "gemma 3": (GEMMA_3, "", "<end_of_turn>\n"),
    "mistral": (MISTRAL, " ", "</s>"),
}

SINGLE: list[Message] = [
    {"role": "user", "content": "Where is truck 12?\nLabel:"},
    {"role": "assistant", "content": '{"category":"customs_hold","eta":"1-2d"}'},
]
MULTI: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße: 2 × 40' HC\n\nsecond line"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "ok"},  # the same words, not supervised here
    {"role": "assistant", "content": "ok, tomorrow"},
]


@pytest.fixture(scope="module")
def styled(tiny_model: Path) -> Callable[[str], PreTrainedTokenizerFast]:
    """The tiny tokenizer with every style's tokens, and a template."""

    def make(template: str) -> PreTrainedTokenizerFast:
        tokenizer = chat.load_tokenizer(tiny_model)
        tokenizer.add_tokens(SPECIAL, special_tokens=True)
        tokenizer.chat_template = template
        return tokenizer

    return make


def supervised(messages: list[Message], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of the runs of tokens that are trained on."""
    rendered = chat.render(messages, tokenizer)
    assert len(rendered.ids) == len(rendered.mask)
    runs: list[list[int]] = [[]]
    for token, keep in zip(rendered.ids, rendered.mask, strict=True):
        if keep:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_the_answers_and_their_ends_are_supervised_and_nothing_else(
    style: str, messages: list[Message], styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    template, before, after = STYLES[style]
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    found = supervised(messages, styled(template))
    assert found == [before + answer + after for answer in answers]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_each_prompt_is_the_beginning_of_what_is_trained_on(
    style: str, messages: list[Message], styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(STYLES[style][0])
    rendered = chat.render(messages, tokenizer)
    for index, turn in enumerate(messages):
        if turn["role"] == "assistant":
            prompt = chat.render_prompt(messages[:index], tokenizer)
            assert rendered.ids[: len(prompt)] == prompt
            assert rendered.mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


@pytest.mark.parametrize("style", STYLES)
def test_what_is_rendered_is_what_the_template_says(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(STYLES[style][0])
    text = tokenizer.apply_chat_template(MULTI, tokenize=False)
    assert tokenizer.decode(chat.render(MULTI, tokenizer).ids) == text


@pytest.mark.parametrize("style", ["scratch", "chatml", "llama 3"])
def test_any_text_keeps_its_prompt_or_is_refused(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(STYLES[style][0])
    text = st.text(st.sampled_from("aé 1{\n\t:'…"), max_size=12)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(user=text, answer=text)
    def holds(user: str, answer: str) -> None:
        asked: list[Message] = [{"role": "user", "content": user}]
        prompt = chat.render_prompt(asked, tokenizer)
        try:
            rendered = chat.render([*asked, {"role": "assistant", "content": answer}], tokenizer)
        except ChatError:
            return
        assert rendered.ids[: len(prompt)] == prompt
        assert rendered.mask == [0] * len(prompt) + [1] * (len(rendered.ids) - len(prompt))

    holds()


def test_an_answer_that_changes_how_its_prompt_is_tokenised_is_refused(
    params: Params,
) -> None:
    sizes = params.base.scratch.model_copy(update={"vocab_size": 320})
    tokenizer = scratch.build_tokenizer(
        ["Label:\n\n", "ok"] * 9, sizes
    )  # two line breaks, one token
    turns: list[Message] = [
        {"role": "user", "content": "Label:\n"},
        {"role": "assistant", "content": "ok"},
    ]
    with pytest.raises(ChatError) as caught:
        chat.render(turns, tokenizer)
    assert str(caught.value) == (
        "turn 2 changes how its prompt is tokenised; remove white space where it begins and where the "
        "turn before it ends, or use a template that ends the prompt with a special token "
        "(base.chat_template)"
    )


@pytest.mark.parametrize("token", ["<|end|>", "<|pad|>", "<|im_start|>", "<|eot_id|>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_special_token_in_the_text_is_refused(
    token: str, role: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(CHATML)
    turns = [
        {**turn, "content": f"before {token} after"} if turn["role"] == role else turn
        for turn in MULTI
    ]
    expected = (
        f"the {role} turn holds the special token {token}, which would be read as the template's own; "
        "remove it from the text"
    )
    with pytest.raises(ChatError) as caught:
        chat.render(turns, tokenizer)  # type: ignore[arg-type]
    assert str(caught.value) == expected
    if role != "assistant":
        with pytest.raises(ChatError, match="holds the special token"):
            chat.render_prompt(turns[:2], tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "messages", "turn"),
    [
        (FORGETFUL, [{**turn, "content": f"hm</think>{turn['content']}"} for turn in MULTI], 3),
        (THINKING, SINGLE, 2),
    ],
    ids=["drops thoughts from history", "asks otherwise than it is answered"],
)
def test_a_template_that_rewrites_history_is_refused(
    template: str,
    messages: list[Message],
    turn: int,
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(ChatError) as caught:
        chat.render(messages, styled(template))
    assert str(caught.value) == (
        f"the template does not keep turn {turn} as it was asked; use a template that renders history "
        "unchanged (base.chat_template)"
    )


def test_a_tokenizer_without_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ChatError) as caught:
        chat.load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"the tokenizer in {tmp_path} has no chat template; name a Jinja file in base.chat_template, or "
        "take the model's instruct variant"
    )


def test_the_contract_says_how_the_fixtures_are_rendered(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = styled(CHATML)
    agreed: dict[str, Any] = json.loads(json.dumps(chat.contract(tokenizer)))
    assert agreed == chat.contract(tokenizer)  # as it is read back from contract.json
    assert set(SPECIAL) < set(agreed["special_tokens"])
    assert len(agreed["fixtures"]) == len(chat.FIXTURES)
    for fixture in agreed["fixtures"]:
        rendered = chat.render(fixture["messages"], tokenizer)
        assert (fixture["ids"], fixture["mask"]) == (rendered.ids, rendered.mask)


def test_the_contract_changes_with_the_template(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    mine, other = chat.contract(styled(CHATML)), chat.contract(styled(QWEN))
    assert mine["template_sha256"] != other["template_sha256"]
    assert mine["special_tokens"] == other["special_tokens"]
    assert mine["fixtures"][0] != other["fixtures"][0]


def test_a_fixture_that_a_template_cannot_express_is_null(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    single, with_system = chat.contract(styled(GEMMA_2))["fixtures"]
    assert single is not None
    assert with_system is None
    assert None not in chat.contract(styled(GEMMA_3))["fixtures"]
