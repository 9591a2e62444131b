"""What a single row must be: private, of the right length, and answered as the schema says."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import jsonschema
from jsonschema.protocols import Validator

from tasks.dataset import privacy, records, strict_json
from tasks.dataset.faults import RowError
from tasks.lineage.stage import StageError
from tasks.params import Validate

Row = Mapping[str, Any]


class RowChecks:
    """The checks of one row, as params.yaml wants them.

    `refused_kinds`: personal data that no row holds behind them; `redacted`: counts of what
    they replaced.
    """

    def __init__(self, settings: Validate) -> None:
        self._settings = settings
        actions = settings.privacy.model_dump()
        self._rejected = [kind for kind in privacy.KINDS if actions[kind] == "reject"]
        self.refused_kinds = [kind for kind in privacy.KINDS if actions[kind] != "allow"]
        self._schema = _validator(settings.answer_schema)
        self.redacted: Counter[privacy.Kind] = Counter(dict.fromkeys(privacy.KINDS, 0))

    def check(self, record: Row) -> dict[str, Any]:
        """The record, redacted.

        Raises:
            RowError: `personal_data_<kind>`, `prompt_too_short`, `prompt_too_long`,
                `answer_too_short`, `answer_too_long`, `answer_not_json`, `unknown_label` or
                `schema`.
        """
        clean = self._private(record)
        if "text" not in clean:
            self._lengths(clean)
            if clean["role"] == "train" and self._schema is not None:
                self._answer(answer(clean))
        return clean

    def _private(self, record: Row) -> dict[str, Any]:
        counts: Counter[privacy.Kind] = Counter()

        def clean(text: str) -> str:
            cleaned, found = privacy.redact_json(text, self.refused_kinds)
            counts.update(found)
            return cleaned

        def pseudonym(name: str | None) -> str | None:
            """Names are only compared, so another one does as well."""
            if name is None or not (found := privacy.redact(name, self.refused_kinds)[1]):
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
        return cleaned

    def _lengths(self, record: Row) -> None:
        for name, found, limits in (
            ("prompt", prompt_chars(record), self._settings.prompt_chars),
            ("answer", answer_chars(record), self._settings.answer_chars),
        ):
            if min(found) < limits[0]:
                detail = f"{min(found)} characters, fewer than {limits[0]}"
                raise RowError(f"{name}_too_short", detail)
            if max(found) > limits[1]:
                detail = f"{max(found)} characters, more than {limits[1]}"
                raise RowError(f"{name}_too_long", detail)

    def _answer(self, text: str) -> None:
        assert self._schema is not None
        try:
            value = strict_json.parse(text)
        except RowError as error:
            raise RowError("answer_not_json", f"{error.reason}: {error.detail}") from None
        for fault in self._schema.iter_errors(value):
            place = ".".join(str(part) for part in fault.absolute_path) or "the answer"
            if fault.validator in ("enum", "const"):
                raise RowError("unknown_label", f"{place} is {fault.instance!r}, no label")
            raise RowError("schema", f"{place}: breaks the rule {fault.validator!r} of the schema")

    def answer_is_valid(self, record: Row) -> bool:
        """Whether the answer satisfies the schema, where one is asked for."""
        if record["role"] != "train" or self._schema is None:
            return True
        try:
            self._answer(answer(record))
        except RowError:
            return False
        return True


_NAMES = {
    "email": "an email address",
    "phone": "a phone number",
    "iban": "an IBAN",
    "card": "a card number",
}


def _validator(schema: dict[str, Any] | None) -> Validator | None:
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
    found = [record[name] for name in ("text", "chosen", "rejected") if name in record]
    turns = record.get("messages", record.get("prompt", ()))
    return [turn["content"] for turn in turns] + found


def prompt_chars(record: Row) -> list[int]:
    """Characters of each user turn."""
    return [len(turn["content"]) for turn in records.prompt(record) if turn["role"] == "user"]


def answer_chars(record: Row) -> list[int]:
    """Characters of each assistant turn, or of the two answers of a pair."""
    if "chosen" in record:
        return [len(record["chosen"]), len(record["rejected"])]
    return [len(turn["content"]) for turn in record["messages"] if turn["role"] == "assistant"]


def digest(*parts: str) -> int:
    """64 bits that stand for texts, so that the texts themselves need not be kept."""
    text = "\0".join(parts).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def prompt_digest(record: Row) -> int:
    """One number for prompts that differ in case, spacing or Unicode form alone."""
    turns = records.prompt(record)
    return digest(*(f"{turn['role']}:{_normal(turn['content'])}" for turn in turns))


def answer_digest(record: Row) -> int:
    """One number for answers that mean the same: JSON by value, other text by its words."""
    text = answer(record)
    try:
        return digest("json", strict_json.dumps(_sorted(strict_json.parse(text))))
    except RowError:
        return digest("text", _normal(text))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


class Contradictions:
    """Finds prompts that have different answers; all their rows are at fault, the first too."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[int, str]] = {}
        self._other: dict[int, str] = {}

    def add(self, record: Row) -> None:
        """Take note of a train chat."""
        key, found = prompt_digest(record), answer_digest(record)
        answered, _ = self._first.setdefault(key, (found, record["id"]))
        if answered != found:
            self._other.setdefault(key, record["id"])

    def check(self, record: Row) -> None:
        """Look at the record once all are added.

        Raises:
            RowError: `contradiction`.
        """
        key = prompt_digest(record)
        if (other := self._other.get(key)) is not None:
            first = self._first[key][1]
            name = first if record["id"] != first else other
            raise RowError("contradiction", f"{name} has the same prompt and another answer")
