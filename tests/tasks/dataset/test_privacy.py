"""What is taken for personal data, and what is not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.dataset import privacy

FOUND = {
    "email": [
        "anna.berg@example.com",
        "m.rossi+freight@example.com",
        "import-desk@customs.example.org",
        "o'byrne@example.co.uk",
        "ÜMIT@example.com",
    ],
    "phone": [
        "+44 7700 900123",
        "07700 900456",
        "020 7946 0735",
        "01632 960042",
        "+1 202 555 0143",
        "(202) 555-0177",
        "+1-312-555-0109",
        "312-555-0164",
        "202.555.0143",
        "+49 30 23125 014",
        "030 23125 117",
        "+49 (0)171 39200 25",
        "0044 20 7946 0018",
        "07700900789",
        "+447700900123",
    ],
    "iban": [
        "GB82 WEST 1234 5698 7654 32",
        "DE89370400440532013000",
        "NL91 ABNA 0417 1643 00",
        "nl91 abna 0417 1643 00",
        "NO9386011117947",
        "BE68-5390-0754-7034",
        "FR14 2004 1010 0505 0001 3M02 606",
    ],
    "card": [
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "6011 1111 1111 1117",
        "3056 930902 5904",
    ],
}


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values]
)
def test_finds_personal_data(kind: str, value: str) -> None:
    for text in (
        value,
        f"pay to {value}.",
        f"({value}), then 12 pallets",
        f"'{value}'",
        f"call:\n{value}\tnow",
    ):
        assert privacy.redact(text) == (text.replace(value, f"[{kind}]"), {kind: 1})


PIECES = [
    *(value for values in FOUND.values() for value in values),
    *(" ", "0", "1", ".", "-", "/", "a", "+", "(", ")", "@"),
]

NOTHING = [
    "order 59896, AWB 80263, NFDU 28707, ref 90210",
    "12,160 KGS, 4.5 cbm, 300 x 200 x 150 cm",
    "received 2026-08-31T10:16:00Z, due 01.09.2026 10:30, or 31/08/2026 1200",
    "container MSKU 907032 3, seal 4410982",
    "GB82 WEST 1234 5698 7654 33",  # mod 97 fails
    "DE00370400440532013000",
    "4111 1111 1111 1112",  # Luhn fails
    "1234567812345670",  # Luhn holds, but no issuer begins with 1
    "tracking 00340434161094015902",
    "invoice 00012345678",
    "a@b",
    "meet @ 10:30",
    "version 3.11.7, build 20260831",
    "192.168.100.200",
    "1,234,567,890",
    "0.1234567890123",
    "within 24 h or 3-5 days (2 days)",
    "UN 1263, class 3",
]


@pytest.mark.parametrize("text", NOTHING)
def test_leaves_other_numbers_alone(text: str) -> None:
    assert privacy.redact(text) == (text, {})


def test_the_stronger_proof_wins() -> None:
    text = "NL91 ABNA 0417 1643 00 and 4111 1111 1111 1111"
    assert [finding.kind for finding in privacy.find(text)] == ["iban", "card"]
    assert privacy.redact(text, ["phone"]) == (text, {})


def test_a_card_among_other_digits() -> None:
    assert privacy.redact("ref 12 4111 1111 1111 1111 99")[0] == "ref 12 [card] 99"


def test_redacts_only_what_it_is_told_to() -> None:
    text = "a@example.com or +44 7700 900123"
    assert privacy.redact(text, ["email"]) == ("[email] or +44 7700 900123", {"email": 1})


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_nothing_is_left_to_find(text: str) -> None:
    cleaned, _ = privacy.redact(text)
    assert not privacy.find(cleaned)


def test_json_stays_json() -> None:
    answer = json.dumps({"note": "ask\nanna@example.com", "x": ["07700 900456", 1]})
    cleaned, found = privacy.redact_json(answer, privacy.KINDS)
    assert json.loads(cleaned) == {"note": "ask\n[email]", "x": ["[phone]", 1]}
    assert found == {"email": 1, "phone": 1}
    untouched = '{ "a" :  1 }'
    assert privacy.redact_json(untouched, privacy.KINDS)[0] == untouched
    assert privacy.redact_json("{broken a@example.com", privacy.KINDS)[0] == "{broken [email]"


@pytest.mark.parametrize("value", [value for values in FOUND.values() for value in values])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_snippet_shows_none_of_it(value: str, encoding: str) -> None:
    raw = json.dumps({"t": f"x\n{value}"}, ensure_ascii=False).encode(encoding)
    shown = privacy.snippet(raw)
    assert value not in shown
    assert not any(part in shown for part in value.split("@") if len(part) > 6)


def test_a_snippet_is_short_and_fit_to_print() -> None:
    assert privacy.snippet(b"ab\xff\x00\n\x1b[31m" + b"c" * 100).startswith("ab\\xff")
    assert len(privacy.snippet("ä" * 1000)) == privacy.SNIPPET_CHARACTERS
    assert privacy.snippet("\ud800") == "\\ud800"
    escaped = '{"t":"anna\\u0040example.com"}'
    assert "example" not in privacy.snippet(escaped)
    nearly = "GB82 WEST 1234 5698 7654 33 and 4111 1111 1111 1112"
    assert privacy.snippet(nearly) == "[account] and [digits]"


def test_a_long_text_is_searched_in_linear_time() -> None:
    import time

    start = time.process_time()
    for text in (
        "1 " * 100_000,
        "a." * 100_000 + "@",
        "+1" * 100_000,
        "AD12 " * 40_000,
        "0" * 200_000,
    ):
        privacy.find(text)
    assert time.process_time() - start < 10
