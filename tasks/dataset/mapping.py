"""From a source's rows to records: by the `map` of params.yaml, or by well-known column names."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.dataset import strict_json
from tasks.dataset.faults import RowError
from tasks.dataset.readers import json_type
from tasks.dataset.records import Message, Record
from tasks.lineage.stage import StageError
from tasks.params import Source

Values = Mapping[str, Any]


class Mapper(Protocol):
    """Makes a record of a row's values.

    `spare_id` is the record's id when the source has none.  Raises RowError.
    """

    def record(self, values: Values, spare_id: str) -> Record: ...

    def finish(self) -> None:
        """Raise StageError when it saw rows, and none of them had what the map needs."""


def mapper(source: Source, key: str) -> Mapper:
    """The mapper of a source; `key` is the source's place in params.yaml, for messages."""
    return _Detected(source, key) if source.map is None else _Mapped(source, source.map, key)


# --- by a map -------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


@dataclass(frozen=True, slots=True)
class _Column:
    name: str


class Template:
    """A text with columns in braces: `{name}`; a brace itself is written twice.

    Nothing else is understood: no attributes, no indices, no format specifications, so a template
    reads columns and no more.
    """

    def __init__(self, text: str, key: str) -> None:
        self._parts: list[str | _Column] = []
        last = 0
        for match in _TOKEN.finditer(text):
            self._parts.append(text[last : match.start()])
            if match[1] is not None:
                self._parts.append(_Column(match[1]))
            elif len(match[0]) == 2:
                self._parts.append(match[0][0])
            else:
                raise StageError(
                    f"params.yaml: {key} is {text!r}: the brace at character {match.start() + 1} "
                    "stands alone; write {column} for a column, {{ or }} for a brace"
                )
            last = match.end()
        self._parts.append(text[last:])

    @property
    def columns(self) -> list[str]:
        """The columns that the template reads, in order."""
        return [part.name for part in self._parts if isinstance(part, _Column)]

    def fill(self, values: Values) -> str:
        """The text for a row.

        Raises:
            RowError: `missing_column`, or `wrong_type` for a value that is not text.
        """
        return "".join(p if isinstance(p, str) else _string(values, p.name) for p in self._parts)


def _present(values: Values, column: str) -> Any:
    if column not in values:
        raise RowError("missing_column", f"column {column!r} is not there")
    return values[column]


def _string(values: Values, column: str) -> str:
    value = _present(values, column)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"column {column!r} is {json_type(value)}, not a string")
    return value


class _Mapped:
    def __init__(self, source: Source, fields: Mapping[str, Any], key: str) -> None:
        self._source = source
        self._saw_rows = False
        self._templates = {
            name: _compile(value, f"{key}.map.{name}") for name, value in fields.items()
        }
        self._unseen = {
            column: f"{key}.map.{name}"
            for name, value in self._templates.items()
            for column in _columns(value)
        }
        if source.columns is not None:
            for column, place in self._unseen.items():
                if column not in source.columns:
                    raise StageError(
                        f"params.yaml: {place} reads column {column!r}, which {key}.columns does "
                        f"not list; it lists {', '.join(source.columns)}"
                    )

    def finish(self) -> None:
        if self._saw_rows and self._unseen:
            column, place = next(iter(self._unseen.items()))
            raise StageError(
                f"params.yaml: {place} reads column {column!r}, which no row of "
                f"{self._source.file} has; name a column that the file has"
            )

    def record(self, values: Values, spare_id: str) -> Record:
        self._saw_rows = True
        if self._unseen:
            for column in self._unseen.keys() & values.keys():
                del self._unseen[column]
        about = {
            "id": self._id(values, spare_id),
            "time": self._optional("time", values),
            "group": self._optional("group", values),
        }
        if self._source.kind == "text":
            return _text_record(self._source, about, self._filled("text", values))
        turns: list[Message] = []
        if system := self._optional("system", values):
            turns.append({"role": "system", "content": system})
        turns.append({"role": "user", "content": self._filled("user", values)})
        if self._source.kind == "chat":
            turns.append({"role": "assistant", "content": self._filled("assistant", values)})
            return _chat_record(self._source, about, turns)
        chosen, rejected = self._filled("chosen", values), self._filled("rejected", values)
        return _preference_record(self._source, about, turns, chosen, rejected)

    def _filled(self, name: str, values: Values) -> str:
        """The part's text. Words of the template around a blank column do not make it a text."""
        cells = [values.get(column) for column in _columns(self._templates[name])]
        if name in _TEXTS and cells and all(map(_is_blank, cells)):
            raise RowError("empty_text", f"the {name} text is blank")
        text = _fill(self._templates[name], values)
        return text if isinstance(text, str) else strict_json.dumps(text)

    def _optional(self, name: str, values: Values) -> str | None:
        """An empty cell or a null says that there is none."""
        template = self._templates.get(name)
        if template is None or any(_present(values, c) is None for c in _columns(template)):
            return None
        return self._filled(name, values) or None

    def _id(self, values: Values, spare_id: str) -> str:
        template = self._templates.get("id")
        if template is None:
            return spare_id
        columns = {column: _id_text(values, column) for column in _columns(template)}
        return self._filled("id", columns)


def _id_text(values: Values, column: str) -> str:
    """An id may be a whole number: it has one spelling only."""
    value = _present(values, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(values, column)


def _compile(value: Any, key: str) -> Any:
    """A map's value with each string in it made a template."""
    if isinstance(value, str):
        return Template(value, key)
    if isinstance(value, Mapping):
        return {name: _compile(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_compile(item, f"{key}[{index}]") for index, item in enumerate(value)]
    return value


def _columns(value: Any) -> Iterator[str]:
    if isinstance(value, Template):
        yield from value.columns
    elif isinstance(value, dict):
        for item in value.values():
            yield from _columns(item)
    elif isinstance(value, list):
        for item in value:
            yield from _columns(item)


_TEXTS = {"user", "assistant", "chosen", "rejected", "text"}


def _is_blank(cell: Any) -> bool:
    return isinstance(cell, str) and not cell.strip()


def _fill(value: Any, values: Values) -> Any:
    if isinstance(value, Template):
        return value.fill(values)
    if isinstance(value, dict):
        return {name: _fill(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    return value


# --- by well-known names --------------------------------------------------------------------------

_FORMATS = {
    "chat": (("messages",), ("prompt", "completion"), ("instruction", "output")),
    "preference": (("prompt", "chosen", "rejected"),),
    "text": (("text",),),
}
"""Columns by which a format is known, by kind.  Chats: OpenAI's messages, prompt and completion,
Alpaca's instruction and output.  Then preference pairs, and plain text."""


class _Detected:
    def __init__(self, source: Source, key: str) -> None:
        self._source = source
        self._key = key
        self._format: tuple[str, ...] | None = None
        self._first_columns: list[str] = []

    def finish(self) -> None:
        if self._format is None and self._first_columns:
            raise StageError(
                f"params.yaml: {self._key}.map is null, but {self._source.file} has columns "
                f"{', '.join(self._first_columns)}, which are no known {self._source.kind} format "
                f"({self._known()}); write a map"
            )

    def _known(self) -> str:
        return " | ".join("+".join(columns) for columns in _FORMATS[self._source.kind])

    def record(self, values: Values, spare_id: str) -> Record:
        """The first row that fits a format settles it for the file."""
        self._first_columns = self._first_columns or [*values]
        if self._format is None:
            fits = (f for f in _FORMATS[self._source.kind] if values.keys() >= set(f))
            self._format = next(fits, None)
        if self._format is None:
            raise RowError("unknown_format", f"columns fit none of: {self._known()}")
        about = {
            "id": _id_text(values, "id") if "id" in values else spare_id,
            "time": _optional(values, "time"),
            "group": _optional(values, "group"),
        }
        if self._format == ("messages",):
            return _chat_record(self._source, about, _messages(_present(values, "messages")))
        if self._format == ("text",):
            return _text_record(self._source, about, _string(values, "text"))
        turns: list[Message] = []
        if system := _optional(values, "system"):
            turns.append({"role": "system", "content": system})
        if self._format == ("instruction", "output"):
            more = _optional(values, "input")
            user = _string(values, "instruction") + (f"\n\n{more}" if more else "")
        else:
            user = _string(values, "prompt")
        turns.append({"role": "user", "content": user})
        if self._source.kind == "preference":
            chosen, rejected = _string(values, "chosen"), _string(values, "rejected")
            return _preference_record(self._source, about, turns, chosen, rejected)
        answer = _string(values, self._format[-1])
        turns.append({"role": "assistant", "content": answer})
        return _chat_record(self._source, about, turns)


def _optional(values: Values, column: str) -> str | None:
    if values.get(column) is None:
        return None
    return _string(values, column) or None


def _messages(value: Any) -> list[Message]:
    """A chat's turns, checked one by one."""
    if not isinstance(value, list):
        raise RowError("bad_messages", f"messages is {json_type(value)}, not an array")
    turns: list[Message] = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise RowError("bad_messages", f"message {number} is {json_type(item)}, not an object")
        if item.keys() != {"role", "content"}:
            raise RowError("bad_messages", f"message {number} must have role and content, no more")
        if not isinstance(item["content"], str):
            kind = json_type(item["content"])
            raise RowError("wrong_type", f"content of message {number} is {kind}, not a string")
        turns.append({"role": item["role"], "content": item["content"]})
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RowError("bad_messages", "turns must be user, assistant, ..., ending with assistant")
    return turns


# --- records --------------------------------------------------------------------------------------


def _about(source: Source, about: Mapping[str, str | None]) -> dict[str, Any]:
    """What every record says of itself, in the schema's order."""
    if not (about["id"] or "").strip():
        raise RowError("empty_id", "the id is blank")
    if about["time"] is not None:
        try:
            datetime.datetime.fromisoformat(about["time"])
        except ValueError:
            raise RowError(
                "bad_time", "the time is not ISO 8601, as 2026-08-31T12:00:00Z"
            ) from None
    return {
        "id": about["id"],
        "source": source.file,
        "role": source.role,
        "time": about["time"],
        "group": about["group"],
    }


def _not_empty(text: str, name: str) -> str:
    if not text.strip():
        raise RowError("empty_text", f"the {name} text is blank")
    return text


def _chat_record(source: Source, about: Mapping[str, str | None], turns: list[Message]) -> Record:
    for turn in turns:
        _not_empty(turn["content"], turn["role"])
    return {**_about(source, about), "messages": turns}  # type: ignore[return-value]


def _preference_record(
    source: Source,
    about: Mapping[str, str | None],
    turns: list[Message],
    chosen: str,
    rejected: str,
) -> Record:
    for turn in turns:
        _not_empty(turn["content"], turn["role"])
    _not_empty(chosen, "chosen")
    _not_empty(rejected, "rejected")
    if chosen == rejected:
        raise RowError("same_answers", "chosen and rejected are equal")
    answers = {"chosen": chosen, "rejected": rejected}
    return {**_about(source, about), "prompt": turns, **answers}  # type: ignore[return-value]


def _text_record(source: Source, about: Mapping[str, str | None], text: str) -> Record:
    return {**_about(source, about), "text": _not_empty(text, "document")}  # type: ignore[return-value]
