"""JSON as RFC 8259 has it, with nothing guessed: what is ambiguous is a fault."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from tasks.dataset.faults import RowError, quoted

MAX_DEPTH = 64
"""Brackets in brackets.  Fixed, because Python's own limit depends on who calls."""

_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]')
_LITERALS = ("true", "false", "null")
_UNICODE_ESCAPE = r"\u1234"


def parse(text: str) -> Any:
    """The value of one JSON text.

    Raises:
        RowError: `truncated_json`, `invalid_json`, `too_deep`, `duplicate_key`, `not_finite`,
            `lone_surrogate` or `nul`.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise RowError("too_deep", f"brackets are nested more than {MAX_DEPTH} deep")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _syntax_fault(error) from None
    except ValueError:  # an integer of more than 4300 digits
        raise RowError("invalid_json", "a number has too many digits") from None
    if "\\u" in text:  # only an escape can bring in what the decoded bytes cannot hold
        for string in strings(value):
            check_text(string)
    return value


def check_text(text: str) -> None:
    """Refuse what no text file can hold.

    Raises:
        RowError: `lone_surrogate` or `nul`.
    """
    if "\0" in text:
        raise RowError("nul", "a text holds the character U+0000")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RowError("lone_surrogate", "a text holds half of a surrogate pair")


def dumps(value: object) -> str:
    """Compact JSON, keys in the order given, the same bytes everywhere."""
    return _ENCODER.encode(value)


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)


def _depth(text: str) -> int:
    deepest = depth = 0
    for match in _STRUCTURE.finditer(text):
        if match[0] in ("[", "{"):
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in ("]", "}"):
            depth -= 1
    return deepest


def _syntax_fault(error: json.JSONDecodeError) -> RowError:
    text = error.doc.rstrip()
    rest = text[error.pos :]
    cut = (
        not rest
        or error.msg.startswith("Unterminated string")
        or (error.msg == "Expecting value" and any(w.startswith(rest) for w in (*_LITERALS, "-")))
        or (error.msg.startswith("Invalid \\u") and len(rest) < len(_UNICODE_ESCAPE))
    )
    if cut and text:
        return RowError("truncated_json", f"ends inside a value, after {len(text)} characters")
    rule = error.msg.removesuffix(" at").removesuffix(": ")
    return RowError("invalid_json", f"{rule}, at character {error.pos + 1}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("duplicate_key", f"key {quoted(twice)} comes more than once")
    return found


def _constant(name: str) -> NoReturn:
    raise RowError("not_finite", f"{name} is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise RowError("not_finite", "a number is too large for 64 bits")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
