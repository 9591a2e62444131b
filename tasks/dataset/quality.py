"""What a single row must be: private, of the right length, and answered as the schema says."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jsonschema
from jsonschema.protocols import Validator

from tasks.dataset import privacy, records, strict_json
from tasks.dataset.faults import RowError
from tasks.lineage.stage import StageError
from tasks.params import Validate

Row = Mapping[str, Any]


VERDICTS = 2**14
"""Distinct answers whose verdict and digest are remembered; labels are few, free text is not."""

JUDGED_ROLES = ("train", "test")
"""Roles whose answers must satisfy validate.answer_schema."""


class Lengths(NamedTuple):
    """Characters of the shortest and longest user turn and answer of a row."""

    shortest_prompt: int
    longest_prompt: int
    shortest_answer: int
    longest_answer: int


class Checked(NamedTuple):
    """A row behind the checks: redacted, or the very same object when there was nothing to redact;
    how much of what params.yaml refuses it still holds; lengths where it has prompt and answer."""

    record: Row
    personal_data: int
    lengths: Lengths | None


class RowChecks:
    """The checks of one row, as params.yaml wants them.

    `refused_kinds`: personal data that no row holds behind them; `redacted`: counts of what
    they replaced; `judged` and `valid`: train chats whose answer was held against the schema, and
    those that satisfy it.
    """

    def __init__(self, settings: Validate) -> None:
        self._settings = settings
        actions = settings.privacy.model_dump()
        self._rejected = [kind for kind in privacy.KINDS if actions[kind] == "reject"]
        self.refused_kinds = [kind for kind in privacy.KINDS if actions[kind] != "allow"]
        self._schema = validator(settings.answer_schema)
        self._fault = functools.lru_cache(VERDICTS)(self._find_fault)
        self.redacted: Counter[privacy.Kind] = Counter(dict.fromkeys(privacy.KINDS, 0))
        self.judged = self.valid = 0

    def check(self, record: Row, suspicious: bool = True) -> Checked:
        """The record, fit to go on.

        Args:
            suspicious: false when its `whole_text` is not suspicious to privacy and holds no
                backslash.

        Raises:
            RowError: `personal_data_<kind>`, `prompt_too_short`, `prompt_too_long`,
                `answer_too_short`, `answer_too_long`, `answer_not_json`, `unknown_label` or
                `schema`.
        """
        suspected = self._is_suspected(record, suspicious)
        clean = self._private(record) if suspected else record
        found = None
        if "text" not in clean:
            found = lengths(clean)
            if clean["role"] != "benchmark":  # it is compared with, never trained or tested on
                self._limits(found)
            if self._schema is not None and clean["role"] in JUDGED_ROLES:
                self._answer(clean)
        return Checked(clean, self._personal_data(clean) if suspected else 0, found)

    def _is_suspected(self, record: Row, suspicious: bool) -> bool:
        """Look at all texts at once; a backslash may be a JSON escape that hides something.

        Names are looked at apart: most are a number, which beside a text looks like a part of
        another.
        """
        if _is_personal(record["id"]) or _is_personal(record["group"]):
            return True
        if not suspicious:
            return False
        whole = whole_text(record)
        return any(finding.kind in self.refused_kinds for finding in privacy.find(whole)) or (
            "\\" in whole and any(text.lstrip()[:1] in ("{", "[") for text in texts(record))
        )

    def _private(self, record: Row) -> Row:
        counts: Counter[privacy.Kind] = Counter()

        def clean(text: str) -> str:
            cleaned, found = privacy.redact_json(text, self.refused_kinds)
            counts.update(found)
            return cleaned

        def pseudonym(name: str | None) -> str | None:
            """Names are only compared, so another one does as well."""
            kinds = [finding.kind for finding in privacy.find_in_name(name or "")]
            found = [kind for kind in kinds if kind in self.refused_kinds]
            if name is None or not found:
                return name
            counts.update(found)
            return f"name-{digest(name) % 2**64:016x}"

        cleaned = {**record, "group": pseudonym(record["group"]), "id": pseudonym(record["id"])}
        for name in ("text", "chosen", "rejected"):
            if name in record:
                cleaned[name] = clean(record[name])
        for name in ("messages", "prompt"):
            if name in record:
                turns = record[name]
                cleaned[name] = [{**turn, "content": clean(turn["content"])} for turn in turns]
        for kind in self._rejected:
            if counts[kind]:
                detail = f"holds {_NAMES[kind]}, which params.yaml rejects"
                raise RowError(f"personal_data_{kind}", detail)
        self.redacted.update(counts)
        return cleaned if counts else record

    def _personal_data(self, record: Row) -> int:
        found = (finding.kind for text in texts(record) for finding in privacy.find(text))
        return sum(kind in self.refused_kinds for kind in found)

    def _limits(self, found: Lengths) -> None:
        for name, shortest, longest, (low, high) in (
            ("prompt", found.shortest_prompt, found.longest_prompt, self._settings.prompt_chars),
            ("answer", found.shortest_answer, found.longest_answer, self._settings.answer_chars),
        ):
            if shortest < low:
                raise RowError(f"{name}_too_short", f"{shortest} characters, fewer than {low}")
            if longest > high:
                raise RowError(f"{name}_too_long", f"{longest} characters, more than {high}")

    def _answer(self, record: Row) -> None:
        fault = self._fault(answer(record))
        if record["role"] == "train" and "messages" in record:
            self.judged += 1
            self.valid += fault is None
        if fault is not None:
            raise RowError(*fault)

    def _find_fault(self, text: str) -> tuple[str, str] | None:
        """Reason and detail of what is wrong with an answer."""
        assert self._schema is not None
        try:
            value = strict_json.parse(text)
        except RowError as error:
            return "answer_not_json", f"{error.reason}: {error.detail}"
        for fault in self._schema.iter_errors(value):
            place = ".".join(str(part) for part in fault.absolute_path) or "the answer"
            if fault.validator in ("enum", "const"):
                return "unknown_label", f"{place} is {fault.instance!r}, no label"
            return "schema", f"{place}: breaks the rule {fault.validator!r} of the schema"
        return None

    def answer_is_valid(self, record: Row) -> bool:
        """Whether the answer satisfies the schema, where one is asked for."""
        if record["role"] not in JUDGED_ROLES or self._schema is None:
            return True
        return self._fault(answer(record)) is None


_NAMES = {
    "email": "an email address",
    "phone": "a phone number",
    "iban": "an IBAN",
    "card": "a card number",
    "national_id": "a national id",
    "ip": "an IP address",
    "secret": "a secret",
}


def validator(schema: dict[str, Any] | None) -> Validator | None:
    """A checker of answers; none where answers are free text.

    Raises:
        StageError: when the schema itself is at fault.
    """
    if schema is None:
        return None
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = ".".join(["validate.answer_schema", *map(str, error.absolute_path)])
        raise StageError(
            f"params.yaml: {place}: {error.message}; it must be a JSON Schema"
        ) from None
    return cast("Validator", kind(schema))


def answer(record: Row) -> str:
    """The answer that a model is to give: the last message, or the chosen one of a pair."""
    text: str = record["chosen"] if "chosen" in record else record["messages"][-1]["content"]
    return text


def texts(record: Row) -> list[str]:
    """Every text of a record."""
    if "messages" in record:
        return [turn["content"] for turn in record["messages"]]
    found = [record[name] for name in ("text", "chosen", "rejected") if name in record]
    return [turn["content"] for turn in record.get("prompt", ())] + found


def whole_text(record: Row) -> str:
    """All texts of a record, so far apart that no pattern of privacy reaches across."""
    return _APART.join(texts(record))


_APART = "\n\n\n\n"

_PLAIN_NAME = re.compile(
    r"[A-Za-z]{0,12}[-_]?[0-9]{0,7}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32,64}"
)
"""A word, a short number, a UUID or a hash: nothing that `find_in_name` is to find."""


def _is_personal(name: str | None) -> bool:
    return name is not None and not _PLAIN_NAME.fullmatch(name) and bool(privacy.find_in_name(name))


def lengths(record: Row) -> Lengths:
    """Of a chat, or of a pair with its two answers."""
    if "chosen" in record:
        prompts = [len(turn["content"]) for turn in record["prompt"] if turn["role"] == "user"]
        answers = [len(record["chosen"]), len(record["rejected"])]
    else:
        turns = record["messages"]
        prompts = [len(turn["content"]) for turn in turns if turn["role"] == "user"]
        answers = [len(turn["content"]) for turn in turns if turn["role"] == "assistant"]
    return Lengths(min(prompts), max(prompts), min(answers), max(answers))


def digest(*parts: str) -> int:
    """64 bits that stand for texts, so that the texts themselves need not be kept."""
    text = "\0".join(parts).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def prompt_digest(record: Row) -> int:
    """One number for prompts that differ in case, spacing or Unicode form alone."""
    turns = records.prompt(record)
    return digest(*(f"{turn['role']}:{_normal(turn['content'])}" for turn in turns))


def answer_digest(record: Row) -> int:
    """One number for answers that mean the same."""
    return meaning(answer(record))


@functools.lru_cache(VERDICTS)
def meaning(text: str) -> int:
    """One number for texts of one class: JSON by value, other text by its words."""
    if text.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(RowError):
            return digest("json", strict_json.dumps(_sorted(strict_json.parse(text))))
    return digest("text", _normal(text))


def shape(record: Row) -> int:
    """One number for answers of one shape: JSON objects with the same keys, other JSON, free text."""
    return _shape(answer(record))


@functools.lru_cache(VERDICTS)
def _shape(text: str) -> int:
    if text.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(RowError):
            value = strict_json.parse(text)
            return digest("object", *sorted(value)) if isinstance(value, dict) else digest("array")
    return digest("text")


def _normal(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value
