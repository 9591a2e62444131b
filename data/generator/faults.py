"""Faults on purpose: near-copies, personal data and lines that no strict reader may accept."""

import json
import re
from collections.abc import Callable, Mapping
from random import Random

from data.generator.similarity import jaccard, words

Row = dict[str, object]

NEAR = 0.8
_OPENING_NUMBER = re.compile(r"^(\w+ )\d{4,5}\b")
_COURTESIES = ("thx", "regards", "urgent", "thanks", "asap")
_PREFIXES = ("again", "FW", "copy", "reminder")

EMAILS = tuple(
    f"{name}@{domain}"
    for name, domain in (
        ("anna.berg", "example.com"),
        ("j.duarte", "example.org"),
        ("dock4", "logistics.example.com"),
        ("piotr_nowak", "example.org"),
        ("m.rossi+freight", "example.com"),
        ("claire.moreau", "example.com"),
        ("import-desk", "customs.example.org"),
        ("t.hansen", "example.com"),
        ("warehouse.leeds", "example.org"),
        ("sofia.lind", "example.com"),
        ("o.byrne", "example.org"),
        ("k.vogel", "mail.example.com"),
        ("night.shift", "example.com"),
        ("e.santos", "example.org"),
        ("lars.dahl", "example.com"),
        ("billing", "example.org"),
        ("h.jansen", "example.com"),
        ("rita.costa", "example.org"),
    )
)

# Ranges that regulators keep for fiction: Ofcom (UK), NANPA 555-01xx, Bundesnetzagentur.
PHONES = (
    "+44 7700 900123",
    "07700 900456",
    "+44 20 7946 0018",
    "020 7946 0735",
    "01632 960042",
    "+1 202 555 0143",
    "(202) 555-0177",
    "+1-312-555-0109",
    "312-555-0164",
    "+49 30 23125 014",
    "030 23125 117",
    "+49 171 39200 25",
    "+44 1632 960815",
    "+1 (415) 555-0132",
    "07700900789",
)

# The sample numbers of the IBAN registry and of Wikipedia's article; all pass mod 97.
IBANS = (
    "GB82 WEST 1234 5698 7654 32",
    "DE89370400440532013000",
    "NL91 ABNA 0417 1643 00",
    "NO9386011117947",
    "BE68 5390 0754 7034",
)

# The card schemes' published test numbers; all pass Luhn.
CARDS = (
    "4111 1111 1111 1111",
    "5555-5555-5555-4444",
    "378282246310005",
    "6011 1111 1111 1117",
)

PERSONAL: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "email": (EMAILS, ("mail {} for details", "contact is {}", "please copy {}")),
    "phone": (PHONES, ("call {} first", "driver is on {}", "phone of the receiver {}")),
    "iban": (IBANS, ("refund to {}", "pay duty from account {}")),
    "card": (CARDS, ("charge card {}", "storage paid with card {}")),
}


def with_personal_data(text: str, kind: str, number: int, rng: Random) -> str:
    """The text with a clause that carries the `number`-th sample of this kind."""
    samples, clauses = PERSONAL[kind]
    return f"{text.rstrip('.')}, {rng.choice(clauses).format(samples[number % len(samples)])}"


def near_copy(text: str, rng: Random) -> str:
    """The same message with one small edit at an end, in punctuation or in case."""
    end = "." if text.endswith(".") else ""
    edits = [
        f"{text.removesuffix(end)}, {rng.choice(_COURTESIES)}{end}",
        f"{rng.choice(_PREFIXES)}: {text}",
        text.replace(", ", "; ").replace(". ", "; "),
        text.upper() if text != text.upper() else text.lower(),
        f"{text} !!",
        _OPENING_NUMBER.sub(rf"\g<1>{rng.randrange(1000, 99999)}", text),
    ]
    close = [edit for edit in edits if edit != text and jaccard(text, edit) >= NEAR]
    return rng.choice(close)


def long_enough(text: str) -> bool:
    """Whether one word at an end may change while the shingles still agree to `NEAR`."""
    return len(words(text)) >= 13


def dumps(row: object) -> str:
    """One JSON line, the same bytes everywhere."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _with(row: Row, **changes: object) -> bytes:
    return dumps({**row, **changes}).encode()


def _truncated(row: Row) -> bytes:
    line = dumps(row)
    return line[: len(line) * 2 // 3].encode()


def _latin1(row: Row) -> bytes:
    return dumps({**row, "text": f"{row['text']} Köln"}).encode("latin-1")


def _no_category(row: Row) -> bytes:
    return dumps({key: value for key, value in row.items() if key != "category"}).encode()


def _repeated_key(row: Row) -> bytes:
    return f'{dumps(row)[:-1]},"eta":"unknown"}}'.encode()


# kind: (how many lines, how a good row becomes one)
MALFORMED: Mapping[str, tuple[int, Callable[[Row], bytes]]] = {
    "truncated_line": (2, _truncated),
    "null_line": (1, lambda row: b"null"),
    "scalar_line": (1, lambda row: b"42"),
    "array_line": (1, lambda row: dumps(list(row.values())).encode()),
    "not_utf8": (1, _latin1),
    "missing_category": (2, _no_category),
    "text_is_number": (1, lambda row: _with(row, text=48213)),
    "empty_text": (1, lambda row: _with(row, text="")),
    "unknown_category": (1, lambda row: _with(row, category="lost_luggage")),
    "unknown_eta": (1, lambda row: _with(row, eta="2w")),
    "repeated_key": (1, _repeated_key),
    "nul_in_text": (1, lambda row: _with(row, text=f"{row['text']}\0 end")),
    "extra_key": (2, lambda row: _with(row, priority="high")),
    "duplicate_id": (2, lambda row: dumps(row).encode()),
}
