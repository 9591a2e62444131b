"""Personal data in text: email addresses, phone numbers, IBANs and payment cards.

What has a checksum is checked by it (IBAN: ISO 13616, mod 97; cards: ISO/IEC 7812, Luhn), so an
order number is rarely taken for one.  Phone numbers have none: international ones (+44 ...),
national ones with a trunk zero (020 7946 0735) and North American ones (312-555-0164) are found;
local numbers without any of these (22 85 50 50) are not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tasks.dataset import strict_json
from tasks.dataset.faults import RowError

Kind = Literal["email", "phone", "iban", "card"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SNIPPET_CHARACTERS = 80
_SNIPPET_WINDOW = 2000


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters `start` to `end` of a text are personal data."""

    kind: Kind
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """Personal data in a text, in order, without overlaps.

    An IBAN or a card holds digits that look like a phone number; the kind with the stronger proof
    wins: IBAN, card, email, phone.
    """
    found: list[Finding] = []
    if "@" in text:
        found += [Finding("email", *match.span()) for match in _EMAIL.finditer(text)]
    if _DIGITS.search(text):
        strong = [*_ibans(text), *_cards(text)]
        for finding in [*strong, *_phones(text)]:
            if not any(finding.start < other.end and other.start < finding.end for other in found):
                found.append(finding)
    return sorted(found, key=lambda finding: finding.start)


def redact(text: str, kinds: Collection[Kind] = KINDS) -> tuple[str, Counter[Kind]]:
    """The text with `[email]`, `[phone]` ... in place of personal data, and how many of each.

    Nothing is found in the result: where something stood next to it, that is looked for again.
    """
    counts: Counter[Kind] = Counter()
    parts: list[str] = []
    last = 0
    for finding in find(text):
        if finding.kind in kinds:
            parts += [text[last : finding.start], f"[{finding.kind}]"]
            last = finding.end
            counts[finding.kind] += 1
    if not parts:
        return text, counts
    text, more = redact("".join([*parts, text[last:]]), kinds)
    return text, counts + more


def redact_json(text: str, kinds: Collection[Kind]) -> tuple[str, Counter[Kind]]:
    """`redact` for a text that may be JSON: an escape next to a finding must stay whole."""
    if text.lstrip()[:1] not in ("{", "["):
        return redact(text, kinds)
    try:
        value = strict_json.parse(text)
    except RowError:
        return redact(text, kinds)
    counts: Counter[Kind] = Counter()

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            cleaned, found = redact(part, kinds)
            counts.update(found)
            return cleaned
        if isinstance(part, list):
            return [clean(item) for item in part]
        if isinstance(part, dict):
            return {clean(key): clean(item) for key, item in part.items()}
        return part

    cleaned = clean(value)
    return (strict_json.dumps(cleaned), counts) if counts else (text, counts)


def snippet(raw: bytes | str, characters: int = SNIPPET_CHARACTERS) -> str:
    """The start of a row, fit to be shown: personal data and whatever looks a little like it is
    replaced, and so is what is not text."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * _SNIPPET_WINDOW].decode("utf-8", "backslashreplace")
    text = raw[:_SNIPPET_WINDOW].encode("utf-8", "backslashreplace").decode()
    text = text.replace("\0", "").replace("\\u0000", "").replace("\\u0040", "@")
    text, _ = redact(text)
    text = _ANY_ADDRESS.sub("[email]", text)
    text = _ANY_ACCOUNT.sub("[account]", text)
    text = _ANY_NUMBER.sub("[digits]", text)
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1] + "…"


_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){7}")
_EMAIL = re.compile(r"(?<!\w)\w[\w.+'%-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")

_ANY_ADDRESS = re.compile(r"\S{1,64}@\S+")
_ANY_ACCOUNT = re.compile(
    r"\b[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[0-9]\w{0,2})?\b"
)
_ANY_NUMBER = re.compile(r"[0-9](?:[ ./()-]{0,2}[0-9]){8,}")

# Length by country: SWIFT, IBAN Registry, release 99.
_IBAN_LENGTHS = {
    entry[0]: int(entry[1])
    for entry in re.findall(
        r"([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
        "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
        "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
}
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}")
_IBAN_REST = re.compile(r"(?:[ \u00a0-]?[A-Za-z0-9]){11,29}")


def _ibans(text: str) -> Iterator[Finding]:
    for match in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2].upper())
        if length is None or not _IBAN_REST.match(text, match.end()):
            continue
        characters: list[str] = []
        position = match.start()
        while position < len(text) and len(characters) < length:
            character = text[position]
            if character.isascii() and character.isalnum():
                characters.append(character)
            elif character not in " \u00a0-":
                break
            position += 1
        whole = len(characters) == length and not text[position : position + 1].isalnum()
        if whole and _mod97("".join(characters).upper()) == 1:
            yield Finding("iban", match.start(), position)


def _mod97(iban: str) -> int:
    """ISO 13616: country and check digits go to the end, letters become 10 to 35."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


_DIGIT_GROUPS = re.compile(r"(?<![0-9])[0-9]+(?:[ \u00a0-][0-9]+)*(?![0-9])")
_GROUP = re.compile(r"[0-9]+")
# First digits of Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay and Maestro.
_ISSUERS = re.compile(r"4|5[0-8]|2[2-7]|3[04-9]|6")


def _cards(text: str) -> Iterator[Finding]:
    for match in _DIGIT_GROUPS.finditer(text):
        if match.end() - match.start() < 13:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, match.start(), match.end())]
        taken = 0
        for first in range(len(groups)):
            if first < taken or not _ISSUERS.match(text, groups[first][0]):
                continue
            digits = ""
            for last in range(first, len(groups)):
                digits += text[slice(*groups[last])]
                if len(digits) > 19:
                    break
                if len(digits) >= 13 and _luhn(digits):
                    yield Finding("card", groups[first][0], groups[last][1])
                    taken = last + 1
                    break


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


# Each ends in two digits that stand together: a quantity behind a number is not part of it.
_PHONES = (
    # E.164: a plus (or 00 and a country code set apart), then 8 to 15 digits
    re.compile(
        r"(?<![\w+])(?:\+|00(?=[1-9][0-9]{0,2}[ ./(-]))"
        r"[1-9](?:[ ./()-]{0,2}[0-9]){6,13}[0-9](?![0-9])"
    ),
    # a trunk zero, 10 to 12 digits in all
    re.compile(r"(?<![\w+.,/-])(?:\(0[1-9][0-9]{1,4}\)|0[1-9])(?:[ ./-]?[0-9]){4,9}[0-9](?![0-9])"),
    # North America: area code, exchange, line, set apart
    re.compile(
        r"(?<![\w+.,/-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])"
        r"[2-9][0-9]{2}[ .-][0-9]{4}(?![\w-])"
    ),
)
_DATE = re.compile(r"[0-9]{1,2}[./-][0-9]{1,2}[./-](?:19|20)[0-9]{2}")


def _phones(text: str) -> Iterator[Finding]:
    for pattern in _PHONES:
        for match in pattern.finditer(text):
            digits = sum(character.isdigit() for character in match[0])
            if digits >= (8 if match[0][0] == "+" else 10) and not _DATE.search(match[0]):
                yield Finding("phone", *match.span())
