"""What strict JSON refuses, and why."""

import pytest

from tasks.dataset import strict_json
from tasks.dataset.faults import RowError

GOOD = [
    ('{"a":"ä","b":[1,-2.5e3,true,false,null]}', {"a": "ä", "b": [1, -2500.0, True, False, None]}),
    ('"\\u00e9\\ud83d\\ude00"', "é😀"),
    (" [] ", []),
    ('"' + "[" * 1000 + '"', "[" * 1000),
    ("[" * 64 + "]" * 64, None),
]

BAD = [
    ("truncated_json", '{"a":"b'),
    ("truncated_json", '{"a":"b"'),
    ("truncated_json", '{"a":'),
    ("truncated_json", '{"a"'),
    ("truncated_json", '{"a":1,'),
    ("truncated_json", "["),
    ("truncated_json", '{"a":tru'),
    ("truncated_json", '{"a":-'),
    ("truncated_json", '{"a":"\\u12'),
    ("invalid_json", "{'a':1}"),
    ("invalid_json", '{"a":1} {"b":2}'),
    ("invalid_json", '{"a":1,}'),
    ("invalid_json", '{"a":"tab\there"}'),
    ("invalid_json", ""),
    ("invalid_json", "1" * 5000),
    ("duplicate_key", '{"a":1,"a":1}'),
    ("duplicate_key", '{"a":{"b":1,"b":2}}'),
    ("not_finite", '{"a":NaN}'),
    ("not_finite", '{"a":-Infinity}'),
    ("not_finite", '{"a":1e999}'),
    ("lone_surrogate", '{"a":"\\ud800"}'),
    ("lone_surrogate", '{"\\udc00":1}'),
    ("nul", '{"a":["x\\u0000y"]}'),
    ("too_deep", "[" * 65 + "]" * 65),
    ("too_deep", "[" * 100_000),
    ("too_deep", '{"a":' * 65 + "1" + "}" * 65),
]


@pytest.mark.parametrize(("text", "value"), GOOD)
def test_reads_json(text: str, value: object) -> None:
    parsed = strict_json.parse(text)
    if value is not None:
        assert parsed == value


@pytest.mark.parametrize(("reason", "text"), BAD)
def test_refuses_what_is_ambiguous(reason: str, text: str) -> None:
    with pytest.raises(RowError) as caught:
        strict_json.parse(text)
    assert caught.value.reason == reason


def test_says_where_it_broke() -> None:
    with pytest.raises(RowError, match="invalid_json: Expecting ',' delimiter, at character 8"):
        strict_json.parse('{"a":1 "b":2}')
    with pytest.raises(RowError, match="truncated_json: ends inside a value, after 7 characters"):
        strict_json.parse('{"a":"b')
    with pytest.raises(RowError, match="duplicate_key: key 'eta' comes more than once"):
        strict_json.parse('{"eta":1,"eta":2}')


def test_an_answer_is_written_the_same_everywhere() -> None:
    value = {"category": 'a "quoted" ä', "eta": "3-5d"}
    assert strict_json.dumps(value) == '{"category":"a \\"quoted\\" ä","eta":"3-5d"}'
