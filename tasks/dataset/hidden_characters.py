"""Characters that a person does not see and a model reads: Unicode TR 36 and TR 39.

Bidirectional controls reorder what is shown (CVE-2021-42574), zero-width characters, blank letters and
tags carry text that no reviewer sees; controls and noncharacters are no text.  What writing needs stays
allowed: joiners in emoji and in the scripts that use them, direction marks beside right-to-left text,
and the three flags that are spelled with tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tasks.dataset.faults import RowError, quoted

_JOINING = (  # scripts whose letters join or form conjuncts: Arabic to Sinhala, Tibetan to Mongolian
    "\u0600-\u0dff\u0f00-\u109f\u1780-\u18af\ua840-\ua87f\ua8e0-\ua8ff\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00011fff\U0001e900-\U0001e95f"
)
_EMOJI = "\u00a9\u00ae\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u0605\u0608\u060b\u060d\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
    "\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
_BESIDE = 16  # characters: a mark stands at the edge of a word, a number or a bracket
_FLAGS = tuple(
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
    for region in ("gbeng", "gbsct", "gbwls")
)
_MARKS = "\u061c\u200e\u200f"

_REPLACEMENT = "\ufffd"
_ASCII_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    chr(plane + 0xFFFE) + chr(plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)
)
_BLANKS = "\u00ad\u034f\u115f\u1160\u180e\u2800\u3164\uffa0"  # soft hyphens, fillers, empty Braille

_HIDDEN = re.compile(
    "|".join(
        [
            f"[{_BLANKS}\ufff9-\ufffb{_REPLACEMENT}{_NONCHARACTERS}]",
            "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]",
            "[\u200b\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]",
            f"[{_MARKS}]",  # judged by what stands beside them
            f"\u200c(?<![{_JOINING}]\u200c)",
            f"\u200d(?<![{_JOINING}]\u200d)(?:(?<![{_EMOJI}\ufe0f]\u200d)|(?![{_EMOJI}]))",
            "[\U000e0000-\U000e007f]",
            "(?<=[\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef]",
        ]
    )
)


def suspicious(text: str) -> bool:
    """Whether a line may hold a hidden character, escapes in it aside; fast, and never wrong about
    a line that holds one."""
    if text.isascii():
        return len(text.encode("ascii").translate(None, _ASCII_CONTROLS)) != len(text)
    return _HIDDEN.search(text) is not None


def check(values: Any) -> None:
    """Refuse a row that holds a hidden character in a value or in a name.

    Raises:
        RowError: `hidden_character`, with the code point and the field; `replacement_character`
            for U+FFFD, which stands where an earlier decoder lost what was there.
    """
    for field, text in _fields(values, ""):
        if suspicious(text) and (found := _first(text)):
            if found == _REPLACEMENT:
                detail = f"U+FFFD in {field}: the text was damaged before; export it again as UTF-8"
                raise RowError("replacement_character", detail)
            raise RowError("hidden_character", f"U+{ord(found):04X} in {field}")


def _first(text: str) -> str | None:
    end_of_flag = 0
    for match in _HIDDEN.finditer(text):
        at = match.start()
        if at < end_of_flag:
            continue
        if match[0] in _MARKS and _RIGHT_TO_LEFT.search(text, max(0, at - _BESIDE), at + _BESIDE):
            continue
        if flag := next((f for f in _FLAGS if text.startswith(f, at - 1)), None):
            end_of_flag = at - 1 + len(flag)
            continue
        return match[0]
    return None


def _fields(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Every string, with the place where it stands; a name stands in the place that it names."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _fields(item, f"{field}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield f"a name below {field}" if field else "the name of a column", name
            yield from _fields(
                item, f"{field}.{_shown(name)}" if field else f"column {quoted(name)}"
            )


def _shown(name: str) -> str:
    return quoted(name).strip("'")
