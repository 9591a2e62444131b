"""Keys, tokens, passwords and PEM blocks in text.

Tokens that begin as their issuer says are found by patterns here and by the plugins of
detect-secrets (https://github.com/Yelp/detect-secrets), which run offline: their network checks
are never called.  Left out are high entropy and public IP addresses, which take hashes and serial
numbers for secrets; Artifactory, whose passwords look like order numbers; NPM, which takes quadratic
time; basic authentication and keywords, which need quotes.  What of these is worth finding
(Artifactory and NPM keys, `https://user:password@`, `password=...`, "the password is ...") is found
by patterns here.

A plugin run costs about a millisecond a line, so `possible` says first, in about three
microseconds, whether a text can hold a secret at all.
"""

from __future__ import annotations

import base64
import functools
import importlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

Span = tuple[int, int]


def possible(text: str) -> bool:
    """Whether `find` can find anything; false for nearly every text without a secret."""
    return _told(text.lower()) or _may_hold_token(text)


def _told(lower: str) -> bool:
    """Whether a word for a secret is there, and a sign or a verb behind it."""
    return (
        "pass" in lower
        or "pw" in lower
        or "secret" in lower
        or "token" in lower
        or "key" in lower
        or "credential" in lower
        or "bearer" in lower
        or "basic" in lower
        or "contrase" in lower
        or "wachtwoord" in lower
        or "senha" in lower
    ) and _TOLD.search(lower) is not None


_TOLD = re.compile(
    r"(?:pass|pw|secret|token|key|credential|contrase|wachtwoord|senha)"
    r"[\w-]{0,20}[\\\"'`\]]{0,3}\s{0,3}(?::|=|is\s|was\s)|bearer\s|basic\s"
)


def _may_hold_token(text: str) -> bool:
    """Every token has 16 letters, digits, _ or - in a row; words and labels of that length have
    no digit, and a hash or a UUID has no issuer's mark."""
    if "-----BEGIN" in text or "://" in text:
        return True
    if _SIXTEEN not in text.encode().translate(_RUNS):
        return False
    return any(
        _DIGIT.search(run) and (_MARKS.search(run) or _is_mixed(run)) for run in _RUN.findall(text)
    )


def find(text: str) -> list[Span]:
    """Start and end of every secret in a text; of `password=...` the value alone.

    Spans may overlap; the first of those that do is the longest.
    """
    found: list[Span] = []
    if _told(text.lower()):
        found += _assigned(text)
        found += _phrases(text)
        found += [match.span(1) for match in _BEARER.finditer(text)]
        found += [match.span(1) for match in _BASIC.finditer(text) if _is_basic(match[1])]
    if _may_hold_token(text):
        found += [match.span(1) for match in _IN_URL.finditer(text)]
        found += _tokens(text)
    return sorted(set(found), key=lambda span: (span[0] - span[1], span[0]))


def find_tokens(text: str) -> list[Span]:
    """Secrets that begin as their issuer says, whatever stands beside them; longest first."""
    found = set(_tokens(text)) if _may_hold_token(text) else set()
    return sorted(found, key=lambda span: (span[0] - span[1], span[0]))


def _tokens(text: str) -> Iterator[Span]:
    for pattern in (_PEM, _TOKENS):
        yield from (match.span() for match in pattern.finditer(text))
    yield from _by_plugins(text)


def names_a_secret(key: str) -> bool:
    """Whether a JSON key says that its value is a secret, whatever it looks like."""
    match = _NAME.fullmatch(key)
    strong = match is not None and match["strong"] is not None
    return strong and _ABOUT_A_SECRET.search(key) is None


def is_told(value: str) -> bool:
    """Whether the value beside such a key is a secret, and not a remark or a placeholder."""
    return len(value) >= 4 and " " not in value.strip() and not _says_nothing(value)


_SIXTEEN = b"A" * 16
_RUN = re.compile(r"[A-Za-z0-9_-]{16,}")
_RUNS = bytes(
    ord("A") if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "_-") else ord(" ")
    for byte in range(256)
)
_DIGIT = re.compile(r"[0-9]")
_MARKS = re.compile(
    r"(?:AKIA|ASIA|ABIA|ACCA|A3T|eyJ|gh[oprsu]_|github_pat_|gl[a-z]{2,5}-|GR1348941|xox|xapp-"
    r"|[rs]k_live|[rs]k_test|whsec_|AIza|ya29|GOCSPX-|sk-|hf_|npm_|pypi-|sq0|shp[a-z]{2}_|dop_v1_|AKCp"
    r"|[AS][CK][0-9a-z]{32}|[0-9a-z]{32}-us[0-9])"
)


def _is_mixed(run: str) -> bool:
    """22 or more characters, small and capital letters both, as no hash or UUID has them."""
    return len(run) >= 22 and not run.islower() and not run.isupper()


# A block that is cut off goes to the end of the text. Line breaks may be JSON escapes.
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{3,40})-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[oprsu]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255}"  # GitHub
    r"|gl(?:pat|dt|ft|soat|rt|imt|ptt|agent|oas|cbt)-[\w-]{16,}|GR1348941[\w-]{20,}"  # GitLab
    r"|xox[a-z]-[\w-]{10,}|xapp-[0-9]-[\w-]{10,}"  # Slack
    r"|hooks\.slack\.com/services/[\w/]{20,}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[\w+/=]{20,}"  # Stripe
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # Google
    r"|sk-(?:[a-z]{1,12}[0-9]{0,2}-){0,3}(?=[A-Za-z_]{0,64}[0-9])\w{16,}[\w-]*"  # OpenAI, Anthropic
    r"|hf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|npm_[A-Za-z0-9]{30,}"
    r"|pypi-Ag[\w-]{20,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}"  # SendGrid
    r"|sq0[a-z]{3}-[\w-]{20,}"  # Square
    r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"  # Shopify
    r"|dop_v1_[0-9a-f]{64}"  # DigitalOcean
    r"|AKCp[A-Za-z0-9]{20,}"  # Artifactory
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"  # JSON Web Token, RFC 7519
    r")"
)
_IN_URL = re.compile(r"://[^\s:/@]{0,64}:(?!\[secret\])([^\s/@]{1,128})@")  # RFC 3986, 3.2.1
_BEARER = re.compile(r"\b[Bb]earer\s{1,3}([A-Za-z0-9._~+/-]{16,512}=*)")  # RFC 6750
_BASIC = re.compile(r"\b[Bb]asic\s{1,3}([A-Za-z0-9+/]{8,512}={0,2})")  # RFC 7617

_OWNERS = "access|account|admin|api|app|auth|bearer|client|db|id|master|private|refresh|root|user"
_NAME = re.compile(
    rf"(?:[\w.-]{{0,30}}[_.-])?(?:{_OWNERS})?[ _-]?"
    r"(?:(?P<strong>pass(?:word|wd|phrase|code|wort|e)?|pwd?|secret|contraseña|wachtwoord|senha)"
    r"|token|credentials?"
    rf"|(?:{_OWNERS}|secret|service|encryption|signing)[ _-]?key)"
    r"(?:_\w{1,10})?",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    rf"(?<![A-Za-z0-9])(?P<name>{_NAME.pattern})(?![A-Za-z0-9])"
    r"(?P<closed>[\\\"'`\]]{0,3})\s{0,3}(?P<sign>:=|=>|={1,3}|:|\bis\b|\bwas\b)\s{0,3}[\\\"'`]{0,2}"
    r"(?P<value>[^\s\"'`,;<>\\]{4,256})",
    re.IGNORECASE,
)
_ABOUT_A_SECRET = re.compile(
    r"[ _.-](?:name|url|uri|id|path|file|dir|type|hint|policy|length|field|ttl|expiry|reset\w*)\Z",
    re.IGNORECASE,
)
"""Ends of names whose values are about a secret, and none."""

_PLACEHOLDER = re.compile(r"[\[<{$*%]|x{3,}|your|none|null|true|false|todo", re.IGNORECASE)
_CODE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\Z|[A-Za-z_][\w.]*[(\[]")
"""An attribute, a call or an item: `self.secret`, `getpass()`, `environ["KEY"]`."""
_WORDS = re.compile(r"[/.~]{0,2}(?:[^\W\d_]+|[0-9]{1,3})(?:[-_./+]{1,2}(?:[^\W\d_]+|[0-9]{1,3}))*")
"""A word or several, with small numbers among them: `all-clear`, `minimum-8-characters`."""
_LABEL = re.compile(r"[A-Z]{1,6}[-_]?[0-9]+")
_REMARKS = frozenset(
    re.findall(
        r"\w+",
        "optional required mandatory missing unknown empty none default disabled enabled expired "
        "invalid valid changed unchanged reset minimum maximum characters string integer boolean "
        "hidden redacted removed masked placeholder example sha256 sha512 oauth2 base64 aes256 "
        "please must should can cannot will not and the for with your that this was has have are "
        "you our his her their its from into when then only same new old see ask get set use via "
        "forgot forgotten needed wrong correctly again later soon here there again",
    )
)
"""What is said about a secret, or makes words a sentence."""


def _says_nothing(value: str) -> bool:
    return _PLACEHOLDER.match(value) is not None or (
        not _REMARKS.isdisjoint(re.split(r"[-_./+]", value.lower()))
    )


def _assigned(text: str) -> Iterator[Span]:
    for match in _ASSIGNED.finditer(text):
        value = match["value"].rstrip(".!?)]}")
        if len(value) >= 4 and not _says_nothing(value) and _is_secret(match, value):
            yield match.start("value"), match.start("value") + len(value)


def _is_secret(match: re.Match[str], value: str) -> bool:
    """In quotes stands a literal; anything else may be prose or a name in a program."""
    if _ABOUT_A_SECRET.search(match["name"]):
        return False
    text, start, end = match.string, match.start("value"), match.end("value")
    in_quotes = text[start - 1] in "\"'`" and text[end : end + 1] in ('"', "'", "`", "\\")
    literal = in_quotes and (bool(match["closed"]) or "=" in match["sign"])
    if literal and match["strong"] is not None:
        return True
    if _WORDS.fullmatch(value) or (not in_quotes and _CODE.match(match["value"])):
        return False
    letters = any(character.isalpha() for character in value)
    digits = any(character.isdigit() for character in value)
    if match["strong"] is None:
        return len(value) >= 8 and letters and digits and not _LABEL.fullmatch(value)
    if "=" in match["sign"]:
        return letters or len(value) >= 6
    marks = digits or any(not character.isalnum() for character in value)
    return len(value) >= 6 and letters and (marks if match["sign"] == ":" else digits)


_PHRASE = re.compile(
    r"(?<![a-z0-9])(?:pass(?:word|phrase|wort|e)|wachtwoord|contraseña|senha)\s{0,3}[:=]\s{0,3}"
    r"(?:\"(?P<quoted>\w{3,20}(?: \w{3,20}){2,9})\""
    r"|(?-i:(?P<words>[a-z]{3,12}(?: [a-z]{3,12}){2,9}))[.]?[ \t]{0,3}(?=\n|\Z))",
    re.IGNORECASE,
)


def _phrases(text: str) -> Iterator[Span]:
    """Several words to the end of the line or of the quotes, none of which makes a sentence."""
    for match in _PHRASE.finditer(text):
        name = match.lastgroup or ""
        if _REMARKS.isdisjoint(match[name].lower().split()):
            yield match.span(name)


def _is_basic(value: str) -> bool:
    """Whether base64 holds what stands behind `Basic`: a user, a colon and a password."""
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        return False
    return bool(user and colon and password) and f"{user}{password}".isprintable()


class _Plugin(Protocol):
    def analyze_string(self, string: str) -> Iterator[str]: ...


_PLUGINS = (
    *("aws.AWSKeyDetector", "azure_storage_key.AzureStorageKeyDetector"),
    *("cloudant.CloudantDetector", "discord.DiscordBotTokenDetector"),
    *("github_token.GitHubTokenDetector", "gitlab_token.GitLabTokenDetector"),
    *("ibm_cloud_iam.IbmCloudIamDetector", "ibm_cos_hmac.IbmCosHmacDetector"),
    *("jwt.JwtTokenDetector", "mailchimp.MailchimpDetector"),
    *("openai.OpenAIDetector", "private_key.PrivateKeyDetector", "pypi_token.PypiTokenDetector"),
    *("sendgrid.SendGridDetector", "slack.SlackDetector", "softlayer.SoftlayerDetector"),
    *("square_oauth.SquareOAuthDetector", "stripe.StripeDetector"),
    *("telegram_token.TelegramBotTokenDetector", "twilio.TwilioKeyDetector"),
)


@functools.cache
def _plugins() -> list[_Plugin]:
    found: list[_Plugin] = []
    for name in _PLUGINS:
        module, _, plugin = name.partition(".")
        made: Any = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), plugin)
        found.append(made())
    return found


def _by_plugins(text: str) -> Iterator[Span]:
    for plugin in _plugins():
        for value in set(plugin.analyze_string(text)):
            start = text.find(value)
            while start >= 0:
                yield start, start + len(value)
                start = text.find(value, start + len(value))
