"""What counts as JSON, and as equal."""

import pytest

from tasks.evaluation import answers


@pytest.mark.parametrize(
    "answer",
    [
        '{"category":"delay","eta":"1-2d"}',
        ' {"a": {"b": [1, 2.5, null, true, "x"]}}\n',
        "[]",
        '{"name": "Gruß \\u00e9"}',
    ],
)
def test_structured(answer: str) -> None:
    assert answers.parse(answer) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        '{"category":"delay"',
        '{"category":"delay"} and more',
        'Sure: {"category":"delay"}',
        "{'category':'delay'}",
        '{"a":1,}',
        '{"a":1,"a":1}',
        '{"a":{"b":1,"b":2}}',
        '{"a":NaN}',
        '{"a":-Infinity}',
        "[1" + "0" * 5000 + "]",
        "[" * 100_000,
        "42",
        '"delay"',
        "null",
        "true",
        "four",
    ],
)
def test_text(answer: str) -> None:
    assert answers.parse(answer) is None
    assert answers.fields(answer) == {}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"b": [1, {"c": 2}], "a": "x"}', '{"a":"x","b":[1,{"c":2}]}'),
        ('{"a": 1.0}', '{"a": 1}'),
        (" four\n", "four"),
        ("42", "42"),
    ],
)
def test_match(answer: str, expected: str) -> None:
    assert answers.matches(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1}', '{"a": true}'),
        ('{"a": "1"}', '{"a": 1}'),
        ('{"a": 1, "b": 2}', '{"a": 1}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": [1]}', '{"a": [1, 1]}'),
        ('{"a": 1, "a": 1}', '{"a": 1}'),
        ("[]", "{}"),
        ("Four", "four"),
        ('{"a": 1}', "four"),
        ("four", '{"a": 1}'),
    ],
)
def test_no_match(answer: str, expected: str) -> None:
    assert not answers.matches(answer, expected)


def test_a_field_is_compared_by_itself() -> None:
    expected = '{"category":"delay","eta":null}'
    assert answers.field_matches('{"category":"delay"}', expected, "category")
    assert not answers.field_matches('{"category":"delay"}', expected, "eta")  # absent, not null
    assert answers.field_matches('{"eta":null}', expected, "eta")
    assert not answers.field_matches("delay", expected, "category")
