"""What an answer says: strict JSON, or text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.dataset import strict_json
from tasks.dataset.faults import RowError

Structure = dict[str, Any] | list[Any]


def parse(answer: str) -> Structure | None:
    """The JSON object or array that an answer is, or None.

    As strict as with the data that is trained on: a repeated key, NaN, or anything before or behind
    it makes an answer text.  A lone number, string, true, false or null counts as text too: "42"
    answers a question, it is no structured output.
    """
    try:
        value = strict_json.parse(answer)
    except RowError:
        return None
    return value if isinstance(value, dict | list) else None


def same(left: object, right: object) -> bool:
    """Equality of JSON values: the order of keys and the way a number is written do not matter,
    the type does (in Python, 1 == True)."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return left == right


def matches(answer: str, expected: str) -> bool:
    """Equal as JSON where a JSON answer is expected, else equal as text without outer spaces."""
    structure = parse(expected)
    if structure is None:
        return answer.strip() == expected.strip()
    return same(parse(answer), structure)


def fields(answer: str) -> Mapping[str, Any]:
    """The fields of a JSON object; none for anything else."""
    structure = parse(answer)
    return structure if isinstance(structure, dict) else {}


def field_matches(answer: str, expected: str, field: str) -> bool:
    """Whether an answer has a field with the expected value."""
    found = fields(answer)
    return field in found and same(found[field], fields(expected)[field])
