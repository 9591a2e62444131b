"""Personal data and secrets in text.

`email`; `phone`; `iban` (ISO 13616, mod 97); `card` (ISO/IEC 7812, Luhn); `national_id` (see
`national_ids`); `ip` (IPv4 and IPv6, loopback and private addresses too, version and section
numbers not); `secret` (see `credentials`).  What has a checksum is checked by it, so an order number
is rarely taken for one.  Phone numbers have none: international ones (+44 ...), national ones with
a trunk zero (020 7946 0735) and North American ones (312-555-0164) are found; local numbers without
any of these (22 85 50 50) are not.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stdnum import luhn

from tasks.dataset import credentials, national_ids, strict_json
from tasks.dataset.faults import RowError

Kind = Literal["email", "phone", "iban", "card", "national_id", "ip", "secret"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Span = tuple[int, int]

SNIPPET_CHARACTERS = 80
_SNIPPET_WINDOW = 2000


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters `start` to `end` of a text are personal data."""

    kind: Kind
    start: int
    end: int


def suspicious(text: str) -> bool:
    """Whether a text may hold personal data: `find` finds nothing where this is false.

    It takes about five microseconds for a message of 200 characters and is false for most.
    """
    return (
        "@" in text
        or (text.count(".") >= 3 and _QUAD.search(text) is not None)
        or _has_colons(text)
        or _DIGITS.search(text) is not None
        or _LETTERS_AND_DIGITS.search(text) is not None
        or credentials.possible(text)
    )


def screen(texts: Sequence[str]) -> list[bool]:
    """`suspicious` for many texts at once, three times as fast, and true a little more often.

    Arrow's regular expressions (RE2) are automata: they cost the same whatever the text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.array(texts, pa.large_string())
    flags = [pc.match_substring_regex(column, pattern) for pattern in _SCREENS]
    return [any(found) for found in zip(*(flag.to_pylist() for flag in flags), strict=True)]


# What `suspicious` asks, in the syntax of RE2; each stays small, since together they grow large.
_SCREENS = (
    r"@|::|-----BEGIN|://",
    r"[0-9](?:[^0-9]{0,4}[0-9]){6}",
    r"[A-Z][A-Z](?:(?: ?[0-9]{2}){3}|[A-Z]{3}[0-9]{4}|[A-Z] ?[A-Z]{3} ?[0-9]{2})",
    r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f](?::[0-9A-Fa-f]{1,4}){2}:[0-9A-Fa-f]",
    r"(?i:pass|pw|secret|token|key|credential|contrase|wachtwoord|senha)\S{0,24}[\s\pZ]{0,3}"
    r"(?:[:=]|(?i:is|was)[\s\pZ])|(?i:bearer|basic)[\s\pZ]",
    r"[A-Za-z0-9_-]{16}",
)


def find(text: str) -> list[Finding]:
    """Personal data in a text, in order, without overlaps.

    An IBAN or a card holds digits that look like a phone number; the kind with the stronger proof
    wins, in the order in which they are looked for here.
    """
    if not suspicious(text):
        return []
    found: list[Finding] = [Finding("secret", *span) for span in credentials.find(text)]
    digits = _DIGITS.search(text) is not None
    mistyped: list[Span] = []
    if digits:
        found += [Finding("iban", *span) for span in _ibans(text, mistyped)]
        found += _apart(_cards(text), mistyped)
    if digits or _LETTERS_AND_DIGITS.search(text):
        found += [Finding("national_id", *span) for span in national_ids.find(text)]
    found += _emails(text)
    found += _addresses(text)
    if digits:
        found += _apart(_phones(text), mistyped)
    return _without_overlaps(found)


def find_in_name(name: str) -> list[Finding]:
    """Personal data in an id or the name of a group, in order, without overlaps.

    Most names are numbers, so only what has a proof of its own counts: an issuer's mark, a
    checksum, an @.
    """
    found = [Finding("secret", *span) for span in credentials.find_tokens(name)]
    mistyped: list[Span] = []
    found += [Finding("iban", *span) for span in _ibans(name, mistyped)]
    found += _apart(_cards(name), mistyped)
    found += [Finding("national_id", *span) for span in national_ids.find_proven(name)]
    found += _emails(name)
    return _without_overlaps(found)


def _apart(found: Iterable[Finding], spans: Sequence[Span]) -> Iterator[Finding]:
    for finding in found:
        if not any(finding.start < end and start < finding.end for start, end in spans):
            yield finding


def _without_overlaps(found: Iterable[Finding]) -> list[Finding]:
    kept: list[Finding] = []
    for finding in found:
        if not any(finding.start < other.end and other.start < finding.end for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


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

    def clean(part: Any, before: str = "") -> Any:
        if isinstance(part, list):
            return [clean(item, before) for item in part]
        if isinstance(part, dict):
            return {clean(key): named(key, item) for key, item in part.items()}
        if part is None or isinstance(part, bool):
            return part
        cleaned, found = redact(f"{before}{part}", kinds)  # a number may be one too
        if not cleaned.startswith(before):
            cleaned, found = redact(str(part), kinds)
            before = ""
        counts.update(found)
        return cleaned.removeprefix(before) if found else part

    def named(key: str, part: Any) -> Any:
        """The key says what a value is: `password`, `ssn`."""
        told = isinstance(part, str) and credentials.names_a_secret(key) and "secret" in kinds
        if told and credentials.is_told(part):
            counts["secret"] += 1
            return "[secret]"
        return clean(part, f"{key}: ")

    cleaned = clean(value)
    return (strict_json.dumps(cleaned), counts) if counts else (text, counts)


def snippet(raw: bytes | str, characters: int = SNIPPET_CHARACTERS) -> str:
    """The start of a row, fit to be shown: personal data and whatever looks a little like it is
    replaced, and so is what is not text."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * _SNIPPET_WINDOW].decode("utf-8", "backslashreplace")
    text = raw[:_SNIPPET_WINDOW].encode("utf-8", "backslashreplace").decode()
    text = text.replace("\0", "").replace("\\u0000", "").replace("\\u0040", "@")
    text = _SPACE_ESCAPE.sub(" ", text)  # the letter of the escape would hide what follows it
    text, _ = redact(text)
    text = _ANY_PASSWORD.sub(r"\1[secret]", text)
    text = _ANY_TOKEN.sub("[token]", text)
    text = _ANY_ADDRESS.sub("[email]", text)
    text = _ANY_ACCOUNT.sub("[account]", text)
    text = _ANY_NUMBER.sub("[digits]", text)
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1] + "…"


_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}+[0-9]){6}")
# National ids of fewer than seven digits begin like this.
_LETTERS_AND_DIGITS = re.compile(
    r"[A-Z][A-Z](?:(?: ?[0-9]{2}){3}|[A-Z]{3}[0-9]{4}|[A-Z] ?[A-Z]{3} ?[0-9]{2})"
)
_FILE = re.compile(
    r"jpe?g|png|gif|svg|webp|bmp|ico|gz|xz|tgz|tar|rar|whl|css|js|json|html?|xml|ya?ml|pdf|docx?"
    r"|xlsx?|csv|txt|exe|dll|jar|wav"
)
"""Ends of file names that are no top-level domains: `icon@2x.jpg`."""


def _emails(text: str) -> Iterator[Finding]:
    """RFC 5321 as far as it is used; the user `git` is a repository's, and nobody's."""
    for match in _EMAIL.finditer(text) if "@" in text else ():
        user, _, domain = match[0].rpartition("@")
        *labels, last = domain.lower().split(".")
        if (
            not _FILE.fullmatch(last)
            and user.lower() not in ("git", "hg")
            and not all(label.isdigit() for label in labels)
        ):
            yield Finding("email", *match.span())


_EMAIL = re.compile(r"(?<!\w)\w[\w.+'%-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")

_SPACE_ESCAPE = re.compile(r"\\+[nrtbf]")
_ANY_ADDRESS = re.compile(r"\S{1,64}@\S+")
_ANY_ACCOUNT = re.compile(
    r"\b[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[0-9]\w{0,2})?\b"
)
_ANY_PASSWORD = re.compile(
    r"((?:pass|pwd|secret|token|key)\w{0,8}[\\\"']{0,3}\s{0,2}[:=]\s{0,2}[\\\"']{0,3})"
    r"(?!\[)[^\s\"'\\,}]{4,}",
    re.IGNORECASE,
)
_ANY_TOKEN = re.compile(r"(?=[\w+/-]{0,200}[0-9])(?=[\w+/-]{0,200}[A-Za-z])[\w+/-]{24,}={0,2}")
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


# What begins with a digit is searched fast, so that comes first.
_IBAN_PART = re.compile(r"[0-9]{2}(?:[ \u00a0-]?[A-Za-z0-9]){11}")


def _ibans(text: str, mistyped: list[Span]) -> Iterator[Span]:
    """Where IBANs stand; what only looks like one is added to `mistyped`."""
    if not _IBAN_PART.search(text):
        return
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
        account = "".join(characters)
        if whole and _mod97(account.upper()) == 1:
            yield match.start(), position
        elif whole and account.isupper() and sum(map(str.isdigit, account)) > len(account) // 2:
            mistyped.append((match.start(), position))


def _mod97(iban: str) -> int:
    """ISO 13616: country and check digits go to the end, letters become 10 to 35."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


_DIGIT_GROUPS = re.compile(r"(?<![0-9])[0-9]+(?:[ \u00a0-][0-9]+)*(?![0-9])")
_GROUP = re.compile(r"[0-9]+")
_ISSUERS = re.compile(r"4|5[0-8]|2[2-7]|3[04-9]|6")
_ISSUED = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11}"  # Diners
    r"|35[0-9]{14,17}"  # JCB
    r"|(?:5[0-8]|6[0-9])[0-9]{14,17}"  # Mastercard, Maestro, Discover, UnionPay, RuPay
    r"|2[2-7][0-9]{14}"  # Mastercard, Mir
)
"""First digits and lengths of ISO/IEC 7812 numbers in use; an IMEI has fifteen digits too."""

_CARD_PART = re.compile(r"[0-9](?:[ \u00a0.-]?[0-9]){12}")
_DOTTED = re.compile(r"(?<![0-9.])[0-9]{4}(?:\.[0-9]{4}){3}(?!\.?[0-9])")
_IMEI = re.compile(r"\bimei\b[ .:#=no]{0,6}\Z", re.IGNORECASE)


def _cards(text: str) -> Iterator[Finding]:
    if not _CARD_PART.search(text):
        return
    for match in _DOTTED.finditer(text):
        digits = match[0].replace(".", "")
        if _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
            yield Finding("card", *match.span())
    for match in _DIGIT_GROUPS.finditer(text):
        if match.end() - match.start() < 13:
            continue
        if _IMEI.search(text, max(0, match.start() - _REACH), match.start()):
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
                if _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
                    yield Finding("card", groups[first][0], groups[last][1])
                    taken = last + 1
                    break


# Each ends in two digits that stand together: a quantity behind a number is not part of it.
_PHONES = (
    # E.164: a plus (or 00 and a country code set apart), then 8 to 15 digits; 00 and 10 to 12
    re.compile(
        r"(?<![\w+])(?:\+|(?<![.,/-])00(?=[1-9][0-9]{0,2}[ ./(-]))"
        r"[1-9](?:[ ./()-]{0,2}[0-9]){6,13}[0-9](?![0-9])"
        r"|(?<![\w+.,/-])00[1-9][0-9]{9,11}(?![\w-])"
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


_PHONE_PART = re.compile(r"[0-9](?:[ ./()-]{0,2}[0-9]){7}")


def _phones(text: str) -> Iterator[Finding]:
    if not _PHONE_PART.search(text):
        return
    for pattern in _PHONES:
        for match in pattern.finditer(text):
            digits = sum(character.isdigit() for character in match[0])
            plus = match[0][0] == "+"
            if digits < (8 if plus else 10) or _DATE.search(match[0]):
                continue
            if _is_coordinate(match) if plus else national_ids.is_unlike(text, match.start()):
                continue
            yield Finding("phone", *match.span())


_COORDINATE = re.compile(r"\+[0-9]{1,3}\.[0-9]{3,}")
_OTHER_BEHIND = re.compile(r"\s?[,;/ ]\s?[+-]?[0-9]{1,3}\.[0-9]{3}")
_OTHER_BEFORE = re.compile(r"[0-9]\.[0-9]{3,12}\s?[,;/ ]\s?\Z")


def _is_coordinate(match: re.Match[str]) -> bool:
    """A latitude or a longitude: a decimal number beside another."""
    text, start, end = match.string, match.start(), match.end()
    return _COORDINATE.fullmatch(match[0]) is not None and (
        _OTHER_BEHIND.match(text, end) is not None
        or _OTHER_BEFORE.search(text, max(0, start - _REACH), start) is not None
    )


_QUAD = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_IPV4 = re.compile(
    r"(?<![\w.-])(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}"
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?![\w-]|\.[0-9])"
)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9A-Fa-f:]{0,30}:)(?:[0-9A-Fa-f]{0,4}:){2,7}"
    r"(?:[0-9A-Fa-f]{1,4}|[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![\w:]|\.[0-9])"
)
_NUMBERED = re.compile(
    r"(?:\bv|\b(?:version|ver|release|rev|revision|build|firmware|section|sec|chapter|clause"
    r"|paragraph|article|figure|table|item)\b|§)\.?[\s:=]{0,3}\Z",
    re.IGNORECASE,
)
_RELEASED = re.compile(
    r"\b(?:nginx|apache|httpd|tomcat|openssl|openssh|php|python|java|jdk|node|chrome|firefox|windows"
    r"|android|ios|linux|kernel|driver|app|docker|postgres(?:ql)?|mysql|redis)[ /:=-]{1,2}\Z"
    r"|\b(?:up|down)grad(?:e|ed|es|ing)\b[^\n]{0,24}\Z",
    re.IGNORECASE,
)
_REACH = 16
_FURTHER = 36


_FOUR_GROUPS = re.compile(r"[0-9A-Fa-f](?::[0-9A-Fa-f]{1,4}){2}:[0-9A-Fa-f]")


def _has_colons(text: str) -> bool:
    """An IPv6 address has a double colon, or seven."""
    return "::" in text or (text.count(":") >= 7 and _FOUR_GROUPS.search(text) is not None)


def _addresses(text: str) -> Iterator[Finding]:
    """RFC 791 and RFC 4291, section 2.2."""
    if _has_colons(text):
        for match in _IPV6.finditer(text):
            if _is_ipv6(match[0]):
                yield Finding("ip", *match.span())
    if _QUAD.search(text):
        for match in _IPV4.finditer(text):
            if not _is_version(match):
                yield Finding("ip", *match.span())


def _is_version(match: re.Match[str]) -> bool:
    """The word before says so; releases of software are no private addresses (RFC 1918)."""
    text, start = match.string, match.start()
    if _NUMBERED.search(text, max(0, start - _REACH), start):
        return True
    private = match[0].startswith(("10.", "127.", "172.", "192.168."))
    return not private and _RELEASED.search(text, max(0, start - _FURTHER), start) is not None


def _is_ipv6(candidate: str) -> bool:
    """Of what is no more than `a::b` in a program, only the loopback is an address."""
    try:
        ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    groups = [group for group in candidate.split(":") if group]
    return candidate == "::1" or (len(groups) > 1 and any(len(group) > 2 for group in groups))
