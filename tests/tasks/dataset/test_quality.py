"""What a single row must be, and which rows contradict each other."""

from typing import Any

import pytest

from tasks.dataset import quality
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
        "contradictions": "reject",
        "privacy": {"email": "redact", "phone": "allow", "iban": "reject", "card": "reject"},
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
    [chat(), pair(), pair(rejected="anything"), text("x"), chat(role="regression", answer="free")],
)
def test_what_a_row_may_be(record: Any) -> None:
    assert checks().check(record) == record


def test_free_text_answers_need_no_schema() -> None:
    assert checks(answer_schema=None).check(chat(answer="any text")) == chat(answer="any text")


def test_personal_data_is_redacted_wherever_it_stands() -> None:
    tested = checks(answer_schema=None)
    address = "anna@example.com"
    assert tested.check(chat(f"ask {address}", f"asked {address}")) == chat(
        "ask [email]", "asked [email]"
    )
    assert tested.check(pair(f"{address} a", f"{address} b", f"to {address}")) == pair(
        "[email] a", "[email] b", "to [email]"
    )
    assert tested.check(text(f"by {address}")) == text("by [email]")
    assert tested.redacted == {"email": 6, "phone": 0, "iban": 0, "card": 0}
    phone = chat("call 07700 900456")
    assert checks().check(phone) == phone


def test_names_that_are_personal_data_get_another_name() -> None:
    row = {**chat(), "id": "anna@example.com", "group": "anna@example.com"}
    made = checks().check(row)
    assert made["id"] == made["group"] == "name-3016fcba043b75fb"
    assert checks().check({**row, "group": "bob@example.com"})["group"] != made["group"]


def test_personal_data_behind_json_escapes_is_seen() -> None:
    tested = checks(answer_schema=None)
    made = tested.check(chat(answer='{"to":"anna\\u0040example.com"}'))
    assert made["messages"][1]["content"] == '{"to":"[email]"}'


def test_a_schema_that_is_none() -> None:
    with pytest.raises(
        StageError, match=r"params.yaml: validate.answer_schema.type: 'objekt' is not"
    ):
        checks(answer_schema={"type": "objekt"})


def contradicting(*rows: Any) -> list[str]:
    found = quality.Contradictions()
    for row in rows:
        found.add(row)
    bad = []
    for row in rows:
        try:
            found.check(row)
        except RowError as error:
            bad.append(f"{row['id']}: {error.detail}")
    return bad


def test_the_same_prompt_with_other_answers() -> None:
    assert contradicting(
        chat("Where is it", '{"a":1}', id="1"),
        chat("where  IS\nit", '{"a":2}', id="2"),
        chat("another", '{"a":2}', id="3"),
        chat("where is it", '{"a":2}', id="4"),
    ) == [
        "1: 2 has the same prompt and another answer",
        "2: 1 has the same prompt and another answer",
        "4: 1 has the same prompt and another answer",
    ]


def test_answers_that_mean_the_same_do_not_contradict() -> None:
    assert not contradicting(
        chat(answer='{"a":1,"b":[2]}', id="1"), chat(answer='{ "b": [2], "a": 1 }', id="2")
    )
    assert not contradicting(chat(answer="Yes, it is", id="1"), chat(answer="yes,  it is", id="2"))


def test_another_task_is_another_prompt() -> None:
    other = chat(answer="other", id="2")
    other["messages"].insert(0, {"role": "system", "content": "Translate."})
    assert not contradicting(chat(id="1"), other)
