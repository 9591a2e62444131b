"""What no reader sees and a model reads is refused; what writing needs is not."""

import pytest

from tasks.dataset import hidden_characters
from tasks.dataset.faults import RowError


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "Grüße – “quoted” 日本語",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family
        "\U0001f3f3\ufe0f\u200d\U0001f308",  # a flag with a rainbow
        "\U0001f469\U0001f3fd\u200d\u2695\ufe0f",  # a doctor with a skin tone
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u0937",  # Hindi
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England
        "\u05d0\u05d1\u200f 5",  # Hebrew and a mark
        "(\u200e+44) \u05d0",
        "\u2764\ufe0f",
    ],
)
def test_what_writing_needs_is_allowed(text: str) -> None:
    hidden_characters.check({"text": text, "in": [{"x": text}]})


@pytest.mark.parametrize(
    ("text", "point"),
    [
        *((f"a{chr(point)}b", point) for point in (0x200B, 0x2060, 0xFEFF, 0x200C, 0x200D, 0x200E)),
        *(
            (chr(point), point)
            for point in (0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
        ),
        ("\U000e0041\U000e0042", 0xE0041),
        ("\U0001f3f4\U000e0041\U000e007f", 0xE0041),
        ("\U0001f468\u200dx", 0x200D),
        ("a\ufe0f\ufe01", 0xFE01),
        ("a\U000e0100\U000e0101", 0xE0101),
        ("\u05d0" + " " * 40 + "\u200e", 0x200E),
        ("\u05d0\u202e", 0x202E),
        *(
            (f"a{chr(point)}b", point)
            for point in (
                0xAD,
                0x34F,
                0x115F,
                0x1160,
                0x3164,
                0xFFA0,
                0x180E,
                0x2800,
                0xFFF9,
                0xFFFB,
                0xFDD0,
                0xFFFE,
                0x1FFFF,
                0x10FFFF,
                0x01,
                0x08,
                0x0C,
                0x1B,
                0x7F,
                0x85,
                0x9F,
            )
        ),
    ],
)
def test_what_hides_is_refused(text: str, point: int) -> None:
    assert hidden_characters.suspicious(text)
    with pytest.raises(RowError) as caught:
        hidden_characters.check({"a": "ok", "turns": [{"content": text}]})
    assert str(caught.value) == f"hidden_character: U+{point:04X} in column 'turns'[0].content"


def test_a_name_that_hides_is_not_shown() -> None:
    with pytest.raises(RowError) as caught:
        hidden_characters.check({"te\u200bxt": "a"})
    assert str(caught.value) == "hidden_character: U+200B in the name of a column"


def test_line_ends_and_tabs_are_seen() -> None:
    assert not hidden_characters.suspicious("a\tb\r\nc")


def test_what_an_earlier_decoder_lost() -> None:
    with pytest.raises(
        RowError, match="replacement_character: U\\+FFFD in column 'a': the text was"
    ):
        hidden_characters.check({"a": "K\ufffdln"})
