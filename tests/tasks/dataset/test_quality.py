"""What a single row must be, and which rows contradict each other."""

import contextlib
from typing import Any

import pytest

from tasks.dataset import privacy, quality
from tasks.dataset.faults import RowError
from tasks.lineage.stage import StageError
from tasks.params import Validate

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["category", "eta"],
    "properties": {"category": {"enum": ["a", "b"]}, "eta": {"type": "string"}},
}
ANSWER = '{"category":"a","eta":"today"}'


def checks(**changes: Any) -> quality.RowChecks:
    values = {
        "answer_schema": SCHEMA,
        "min_rows": 0,
        "prompt_chars": [3, 60],
        "answer_chars": [2, 80],
        "max_class_share": 1.0,
        "min_score": dict.fromkeys(
            (
                *("consistency", "contradictions", "class_balance"),
                *("distinct_words", "clusters", "length"),
            ),
            0.0,
        ),
        "contradictions": "reject",
        "privacy": {
            "email": "redact",
            "phone": "allow",
            "iban": "reject",
            "card": "reject",
            "national_id": "reject",
            "ip": "redact",
            "secret": "reject",
        },
        "max_reject_share": 1.0,
    }
    return quality.RowChecks(Validate.model_validate({**values, **changes}))


def chat(
    user: str = "where is it", answer: str = ANSWER, role: str = "train", id: str = "1"
) -> Any:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    about = {"id": id, "source": "s", "role": role, "time": None, "group": None}
    return {**about, "messages": messages}


def pair(chosen: str = ANSWER, rejected: str = "no", user: str = "where is it") -> Any:
    about = {"id": "1", "source": "s", "role": "train", "time": None, "group": None}
    prompt = [{"role": "user", "content": user}]
    return {**about, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def text(text: str) -> Any:
    about = {"id": "1", "source": "s", "role": "train", "time": None, "group": None}
    return {**about, "text": text}


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (chat(answer="sure"), "answer_not_json", "invalid_json: Expecting value, at character 1"),
        (chat(answer=ANSWER[:-1]), "answer_not_json", "truncated_json: ends inside a value, after"),
        (chat(answer='{"category":"a","category":"b"}'), "answer_not_json", "duplicate_key"),
        (chat(answer='{"category":"c","eta":"x"}'), "unknown_label", "category is 'c', no label"),
        (chat(answer='{"category":"a"}'), "schema", "the answer: breaks the rule 'required'"),
        (chat(answer='{"category":"a","eta":3}'), "schema", "eta: breaks the rule 'type'"),
        (chat(answer="[1]"), "schema", "the answer: breaks the rule 'type'"),
        (chat(user="hi"), "prompt_too_short", "2 characters, fewer than 3"),
        (chat(user="x" * 61), "prompt_too_long", "61 characters, more than 60"),
        (chat(answer="x"), "answer_too_short", "1 characters, fewer than 2"),
        (chat(answer="x" * 81), "answer_too_long", "81 characters, more than 80"),
        (chat(role="regression", user="hi"), "prompt_too_short", "2 characters"),
        (chat(user="refund DE89370400440532013000"), "personal_data_iban", "holds an IBAN, which"),
        (pair(user="card 4111 1111 1111 1111"), "personal_data_card", "holds a card number, which"),
        (pair(rejected="4111 1111 1111 1111"), "personal_data_card", "holds a card number, which"),
        (pair(chosen='{"category":"c","eta":"x"}'), "unknown_label", "category is 'c', no label"),
        (chat(user="my ssn is 536-90-4399"), "personal_data_national_id", "holds a national id, w"),
        (chat(user="log in, password=hunter2"), "personal_data_secret", "holds a secret, which"),
        (chat(role="test", answer="sure"), "answer_not_json", "invalid_json: Expecting value"),
        (pair(rejected="x"), "answer_too_short", "1 characters, fewer than 2"),
        (text("pay DE89370400440532013000"), "personal_data_iban", "holds an IBAN, which"),
    ],
)
def test_what_a_row_is_rejected_for(record: Any, reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        checks().check(record)
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(detail)


@pytest.mark.parametrize(
    "record",
    [
        chat(),
        pair(),
        pair(rejected="anything"),
        text("x"),
        chat(role="test"),
        chat(role="regression", answer="free"),
        chat(role="general", answer="free"),
        chat(role="benchmark", answer="free", user="x" * 1000),
    ],
)
def test_what_a_row_may_be(record: Any) -> None:
    assert checks().check(record).record is record


def test_free_text_answers_need_no_schema() -> None:
    record = chat(answer="any text")
    assert checks(answer_schema=None).check(record).record is record


def test_personal_data_is_redacted_wherever_it_stands() -> None:
    tested = checks(answer_schema=None)
    address = "anna@example.com"
    assert tested.check(chat(f"ask {address}", f"asked {address}")).record == chat(
        "ask [email]", "asked [email]"
    )
    assert tested.check(pair(f"{address} a", f"{address} b", f"to {address}")).record == pair(
        "[email] a", "[email] b", "to [email]"
    )
    assert tested.check(text(f"by {address}")).record == text("by [email]")
    assert tested.redacted == dict.fromkeys(privacy.KINDS, 0) | {"email": 6}
    phone = chat("call 07700 900456")
    assert checks().check(phone).record is phone
    assert checks().check(phone).personal_data == 0


def test_names_that_are_personal_data_get_another_name() -> None:
    row = {**chat(), "id": "anna@example.com", "group": "anna@example.com"}
    made = checks().check(row).record
    assert made["id"] == made["group"] == "name-3016fcba043b75fb"
    other = checks().check({**row, "group": "bob@example.com"}).record
    assert other["group"] != made["group"]


def test_personal_data_behind_json_escapes_is_seen() -> None:
    tested = checks(answer_schema=None)
    made = tested.check(chat(answer='{"to":"anna\\u0040example.com"}')).record
    assert made["messages"][1]["content"] == '{"to":"[email]"}'


def test_a_schema_that_is_none() -> None:
    with pytest.raises(
        StageError, match=r"params.yaml: validate.answer_schema.type: 'objekt' is not"
    ):
        checks(answer_schema={"type": "objekt"})


def test_a_value_whose_key_says_what_it_is_goes() -> None:
    tested = checks(answer_schema=None, privacy=dict.fromkeys(privacy.KINDS, "redact"))
    made = tested.check(chat(answer='{"password":"open sesame","pin":{"Password":"hunter"}}'))
    assert made.record["messages"][1]["content"] == (
        '{"password":"open sesame","pin":{"Password":"[secret]"}}'
    )
    made = tested.check(chat(answer='{"ssn":536904399,"card":4111111111111111,"rows":536904399}'))
    assert made.record["messages"][1]["content"] == (
        '{"ssn":"[national_id]","card":"[card]","rows":536904399}'
    )
    assert made.personal_data == 0


def test_what_is_judged_is_counted_for_the_consistency() -> None:
    tested = checks()
    for answer in (ANSWER, ANSWER, "sure"):
        with contextlib.suppress(RowError):
            tested.check(chat(answer=answer))
    with contextlib.suppress(RowError):
        tested.check(chat(role="test", answer="sure"))
    tested.check(pair())
    assert (tested.judged, tested.valid) == (3, 2)


def same_answer(one: str, other: str) -> bool:
    return quality.answer_digest(chat(answer=one)) == quality.answer_digest(chat(answer=other))


def test_answers_that_mean_the_same_are_one() -> None:
    assert same_answer('{"a":1,"b":[2]}', '{ "b": [2], "a": 1 }')
    assert same_answer("Yes, it is", "yes,  it is")
    assert not same_answer('{"a":1}', '{"a":2}')
    assert not same_answer("3", "4")


def test_prompts_that_differ_in_spacing_alone_are_one() -> None:
    def same(one: Any, other: Any) -> bool:
        return quality.prompt_digest(one) == quality.prompt_digest(other)

    assert same(chat("Where is it"), chat("where  IS\nit"))
    assert same(chat("\uff21 b"), chat("a b"))
    assert not same(chat("where is it"), chat("where is he"))
    other = chat()
    other["messages"].insert(0, {"role": "system", "content": "Translate."})
    assert not same(chat(), other)


def test_answers_have_a_shape() -> None:
    def of(answer: str) -> int:
        return quality.shape(chat(answer=answer))

    assert of('{"a":1,"b":2}') == of('{"b":"x","a":null}') != of('{"a":1}')
    assert of("free text") == of("other text") == of("{broken") != of("[1]")
