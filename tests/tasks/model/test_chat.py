"""One renderer for all templates: the answer alone is supervised, and is asked for as it was trained."""

from __future__ import annotations

import json
import pickle
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
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
]  # fmt: skip

TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
CHATML = TEMPLATES["chatml"]
# Asks for thinking in the prompt, and leaves no trace of it when the turn is answered.
THINKING = CHATML + "{% if add_generation_prompt %}<think>{{ '\n' }}{% endif %}"

# What each template writes before and after an answer. In the scratch tokenizer <|end|> is eos_token.
STYLES = {
    "scratch": ("", "<|end|>"),
    "chatml": ("", "<|im_end|>\n"),
    "qwen-2.5": ("", "<|im_end|>\n"),
    "qwen-3": ("<think>\n\n</think>\n\n", "<|im_end|>\n"),
    "llama-3": ("", "<|eot_id|>"),
    "llama-3.1": ("", "<|eot_id|>"),
    "gemma-3": ("", "<end_of_turn>\n"),
    "mistral-v1": (" ", "<|end|>"),
    "mistral-v3": (" ", "<|end|>"),
    "mistral-v7": ("", "<|end|>"),
}
SOURCES = {**TEMPLATES, "scratch": scratch.TEMPLATE}
NO_SYSTEM_TURN = {"mistral-v1", "mistral-v3"}

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
        tokenizer.add_tokens(["<think>", "</think>"])  # as Qwen 3 has them: text may hold them
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


def marked(template: str) -> str:
    """The template with generation markers around its answers."""
    return template.replace("{#answer#}", "{% generation %}").replace(
        "{#end#}", "{% endgeneration %}"
    )


def spoken(style: str) -> list[Message]:
    """Several turns that the template can express."""
    return MULTI[1:] if style in NO_SYSTEM_TURN else MULTI


@pytest.mark.parametrize("style", STYLES)
def test_the_answers_and_their_ends_are_supervised_and_nothing_else(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    before, after = STYLES[style]
    for messages in (SINGLE, spoken(style)):
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        if style == "qwen-3":
            answers = answers[-1:]  # the earlier ones lose their block of thoughts
        tokenizer = styled(SOURCES[style])
        assert supervised(messages, tokenizer) == [before + answer + after for answer in answers]
        assert chat.render(messages, tokenizer).ends_supervised


@pytest.mark.parametrize("style", STYLES)
def test_generation_markers_change_nothing(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    with_markers = marked(SOURCES[style])
    assert ("{% generation %}" in with_markers) == (style != "scratch")
    plain, other = styled(SOURCES[style]), styled(with_markers)
    assert chat.render_many([SINGLE, spoken(style)], plain) == chat.render_many(
        [SINGLE, spoken(style)], other
    )


@pytest.mark.parametrize("style", STYLES)
def test_each_prompt_is_the_beginning_of_what_is_trained_on(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(SOURCES[style])
    for messages in (SINGLE, spoken(style)):
        rendered = chat.render(messages, tokenizer)
        asked = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
        for index in asked[rendered.answers_left_out :]:
            prompt = chat.render_prompt(messages[:index], tokenizer)
            assert rendered.ids[: len(prompt)] == prompt
            assert rendered.mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


@pytest.mark.parametrize("style", STYLES)
def test_what_is_rendered_is_what_transformers_makes_of_it(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(SOURCES[style])
    turns = spoken(style)
    assert chat.render(turns, tokenizer).ids == tokenizer.apply_chat_template(
        turns, return_dict=False
    )
    assert chat.render_prompt(turns[:-1], tokenizer) == tokenizer.apply_chat_template(
        turns[:-1], add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("style", STYLES)
def test_many_at_once_are_rendered_as_one_by_one(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(SOURCES[style])
    text = st.one_of(
        st.text(max_size=8),
        st.text(st.sampled_from("aé 1{\n\t:'"), max_size=8),
        st.sampled_from(["<|im_end|>", "<think>x</think>y", "\ud800", "</think>"]),
    )
    turn = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": text}
    )

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(conversations=st.lists(st.lists(turn, max_size=5), max_size=6))
    def equal(conversations: Any) -> None:
        alone = [outcome(chat.render, messages, tokenizer) for messages in conversations]
        assert [plain(one) for one in chat.render_many(conversations, tokenizer)] == alone
        asked = [outcome(chat.render_prompt, messages, tokenizer) for messages in conversations]
        assert [plain(one) for one in chat.render_prompts(conversations, tokenizer)] == asked

    equal()


def plain(found: Any) -> Any:
    return (found.reason, str(found)) if isinstance(found, ChatError) else found


def outcome(render: Callable[..., Any], *args: Any) -> Any:
    try:
        return render(*args)
    except ChatError as error:
        return plain(error)


def test_more_than_a_batch_keeps_its_order(
    styled: Callable[[str], PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = styled(CHATML)
    many = [SINGLE, MULTI, [], SINGLE[:1], MULTI[:3]] * 3
    expected = [plain(one) for one in chat.render_many(many, tokenizer)]
    monkeypatch.setattr(chat, "BATCH", 4)
    assert [plain(one) for one in chat.render_many(many, tokenizer)] == expected
    assert len(chat.render_prompts(many, tokenizer)) == len(many)


@pytest.mark.parametrize("style", ["scratch", "chatml", "llama-3"])
def test_any_text_keeps_its_prompt_or_is_refused(
    style: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    tokenizer = styled(SOURCES[style])
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
    assert caught.value.reason == "prompt_retokenised"
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
    assert (caught.value.reason, str(caught.value)) == ("special_token", expected)
    if role != "assistant":
        with pytest.raises(ChatError, match="holds the special token"):
            chat.render_prompt(turns[:2], tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "messages", "turn"),
    [(THINKING, SINGLE, 2), (TEMPLATES["mistral-v3"], MULTI, 5), (TEMPLATES["qwen-3"], None, 2)],
    ids=[
        "asks otherwise than it is answered",
        "drops the system turn",
        "goes on behind the answer",
    ],
)
def test_a_last_answer_that_is_not_kept_as_it_was_asked_is_refused(
    template: str,
    messages: list[Message] | None,
    turn: int,
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(ChatError) as caught:
        chat.render(messages or [*SINGLE, SINGLE[0]], styled(template))
    assert caught.value.reason == "history_rewritten"
    assert str(caught.value) == (
        f"the template does not keep turn {turn} as it was asked; use a template that renders history "
        "unchanged (base.chat_template)"
    )


THOUGHTFUL: list[Message] = [
    SINGLE[0],
    {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nok"},
    SINGLE[0],
    {"role": "assistant", "content": "<think>\nsecond\n</think>\n\ntomorrow"},
]


def test_thoughts_are_trained_in_the_last_answer_and_gone_from_those_before(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = styled(TEMPLATES["qwen-3"])
    rendered = chat.render(THOUGHTFUL, tokenizer)
    assert supervised(THOUGHTFUL, tokenizer) == [
        "<think>\nsecond\n</think>\n\ntomorrow<|im_end|>\n"
    ]
    assert (rendered.answers_left_out, rendered.ends_supervised) == (1, True)
    assert "first" not in tokenizer.decode(rendered.ids)
    # each answer is trained when the conversation is given up to it
    assert supervised(THOUGHTFUL[:2], tokenizer) == ["<think>\nfirst\n</think>\n\nok<|im_end|>\n"]


def test_the_empty_block_of_thoughts_can_be_moved_into_the_prompt(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = styled("{% set enable_thinking = false %}" + TEMPLATES["qwen-3"])
    assert supervised(SINGLE, tokenizer) == [SINGLE[1]["content"] + "<|im_end|>\n"]
    prompt = tokenizer.decode(chat.render_prompt(SINGLE[:1], tokenizer))
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")


def test_an_answer_to_nothing_is_context(styled: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = styled(CHATML)
    greeted: list[Message] = [{"role": "assistant", "content": "Hello."}, *SINGLE]
    assert supervised(greeted, tokenizer) == [SINGLE[1]["content"] + "<|im_end|>\n"]
    assert chat.render(greeted, tokenizer).answers_left_out == 1
    for turns in (greeted[:1], []):
        with pytest.raises(ChatError) as caught:
            chat.render(turns, tokenizer)
        assert caught.value.reason == "not_renderable"
        assert str(caught.value) == "an answer has no turn before it; add what was asked"


@pytest.mark.parametrize(
    ("end", "learned"),
    [
        ("<|im_end|>", True),
        ("<|im_end|>\n", True),
        (" <|im_end|> \n\n", True),
        ("{{ eos_token }}", True),
        ("</think>", True),  # a token that is not marked special, but is the template's
        ("", False),
        ("\n", False),
        ("\n\n", False),
        (" END", False),
        ("</s>", False),  # this tokenizer knows no such token
        ("<|im_end|>\nNext: ", False),
    ],
)
def test_an_end_of_turn_is_a_token_that_an_engine_can_stop_at(
    end: str, learned: bool, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    written = end if end.startswith("{{") else f"{{{{ {end!r} }}}}"
    template = (
        "{% for message in messages %}{{ message.content }}"
        "{% if message.role == 'assistant' %}" + written + "{% else %}\n>{% endif %}{% endfor %}"
    )
    rendered = chat.render(SINGLE, styled(template))
    assert rendered.ends_supervised is learned
    assert rendered.mask[-1] == 1


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (TEMPLATES["mistral-v1"], "user and assistant must take turns"),
        ("{{ raise_exception('bad: ' + messages[0].content) }}", "TemplateError"),
        ("{{ messages[0].nothing.at_all }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_a_refusal_of_the_template_never_quotes_the_row(
    template: str, why: str, styled: Callable[[str], PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(ChatError) as caught:
        chat.render(MULTI, styled(template))
    assert caught.value.reason == "not_renderable"
    assert str(caught.value) == (
        f"the template refuses the conversation: {why}; change its turns, or use another template "
        "(base.chat_template)"
    )


def test_a_lone_surrogate_is_refused(styled: Callable[[str], PreTrainedTokenizerFast]) -> None:
    with pytest.raises(ChatError) as caught:
        chat.render([{"role": "user", "content": "a\ud83d"}, SINGLE[1]], styled(CHATML))
    assert caught.value.reason == "not_renderable"
    assert str(caught.value) == (
        "the user turn holds a lone surrogate, which is no character; remove it from the text"
    )


def test_a_template_that_is_no_jinja_is_refused(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(ChatError, match=r"^the chat template is no Jinja: .*; mend it, or name"):
        chat.render(SINGLE, styled("{% for %}"))


CLOCK = (
    "the template writes today's date, so that tomorrow's prompts would not be those that were "
    "trained; name a copy in base.chat_template that has a fixed date in place of strftime_now"
)


def test_a_template_that_reads_the_clock_is_refused_before_any_row(
    styled: Callable[[str], PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    tokenizer = styled(TEMPLATES["llama-3.2"])
    with pytest.raises(ChatError) as caught:
        chat.render(SINGLE, tokenizer)
    assert (caught.value.reason, str(caught.value)) == ("reads_clock", CLOCK)
    assert chat.contract(tokenizer)["fixtures"] == [None] * len(chat.FIXTURES)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ChatError) as caught:
        chat.load_tokenizer(tmp_path)
    assert str(caught.value) == CLOCK


def test_a_template_that_reads_the_clock_without_a_system_turn_serves_with_one(
    styled: Callable[[str], PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    tokenizer = styled(
        "{% if messages[0].role != 'system' %}{{ strftime_now('%d') }}{% endif %}" + CHATML
    )
    tokenizer.save_pretrained(tmp_path)
    loaded = chat.load_tokenizer(tmp_path)
    without, found = chat.render_many([SINGLE, MULTI], loaded)
    assert isinstance(without, ChatError)
    assert without.reason == "reads_clock"
    assert found == chat.render(MULTI, styled(CHATML))


def test_a_date_of_the_template_needs_no_clock(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = styled(TEMPLATES["llama-3.1"])
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(chat.render(SINGLE, tokenizer).ids)
    fixed = styled("{% set date_string = '1 Jan 2026' %}" + TEMPLATES["llama-3.2"])
    assert "Today Date: 1 Jan 2026" in fixed.decode(chat.render(SINGLE, fixed).ids)


def test_nothing_is_cut_or_filled_up(styled: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = styled(CHATML)
    expected = chat.render_many([SINGLE, MULTI], tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=900)
    assert chat.render_many([SINGLE, MULTI], tokenizer) == expected


def test_white_space_that_has_no_offsets_is_supervised_too(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    from tokenizers import processors

    tokenizer = styled(TEMPLATES["llama-3"])
    # Llama 3's tokenizer cuts white space off the offsets
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    turns: list[Message] = [SINGLE[0], {"role": "assistant", "content": "one\n\n\ntwo"}]
    assert supervised(turns, tokenizer) == ["one\n\n\ntwo<|eot_id|>"]


def test_an_error_survives_the_way_out_of_a_process() -> None:
    error = pickle.loads(pickle.dumps(ChatError("special_token", "the text")))
    assert (type(error), error.reason, str(error)) == (ChatError, "special_token", "the text")


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
    mine, other = chat.contract(styled(CHATML)), chat.contract(styled(TEMPLATES["qwen-2.5"]))
    assert mine["template_sha256"] != other["template_sha256"]
    assert mine["special_tokens"] == other["special_tokens"]
    assert mine["fixtures"][0] != other["fixtures"][0]


def test_a_fixture_that_a_template_cannot_express_is_null(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    rendered = [
        fixture is not None
        for fixture in chat.contract(styled(TEMPLATES["mistral-v1"]))["fixtures"]
    ]
    has_system = [messages[0]["role"] == "system" for messages in chat.FIXTURES]
    assert rendered == [not system for system in has_system]
    assert None not in chat.contract(styled(TEMPLATES["gemma-3"]))["fixtures"]


def broken(agreed: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    with pytest.raises(ChatError) as caught:
        chat.check_contract(agreed, tokenizer)
    assert caught.value.reason == "contract_broken"
    text = str(caught.value)
    start = "chats are rendered otherwise than was agreed: "
    end = (
        "; run `dvc repro format`, or bring back the tokenizer and template that were trained with"
    )
    assert text.startswith(start)
    assert text.endswith(end)
    return text.removeprefix(start).removesuffix(end)


def test_a_kept_contract_passes_and_a_broken_one_says_where(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = styled(CHATML)
    agreed = json.loads(json.dumps(chat.contract(tokenizer)))
    chat.check_contract(agreed, tokenizer)

    other = json.loads(json.dumps(agreed))
    other["fixtures"][1]["ids"][7] = 99999
    found = agreed["fixtures"][1]["ids"][7]
    assert broken(other, tokenizer) == f"fixture 1 differs in ids[7]: {found}, not 99999"

    other = json.loads(json.dumps(agreed))
    other["fixtures"][0]["mask"].pop()
    place = len(other["fixtures"][0]["mask"])
    assert broken(other, tokenizer) == f"fixture 0 differs in mask[{place}]: 1, not the end"

    other = json.loads(json.dumps(agreed))
    other["special_tokens"]["<|im_end|>"] = 5
    del other["special_tokens"]["<|eot_id|>"]
    other["fixtures"][0] = None
    eot, end = (agreed["special_tokens"][token] for token in ("<|eot_id|>", "<|im_end|>"))
    assert broken(other, tokenizer) == (
        f"special token <|eot_id|> is {eot}, not none; special token <|im_end|> is {end}, not 5; "
        "fixture 0 can be rendered, and could not"
    )


def test_another_template_breaks_the_contract(
    styled: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    agreed = chat.contract(styled(CHATML))
    text = broken(agreed, styled(TEMPLATES["mistral-v1"]))
    assert f"not {agreed['template_sha256'][:12]}; fixture 0 differs in ids[0]: " in text
    assert "; fixture 1 cannot be rendered, and could; " in text
