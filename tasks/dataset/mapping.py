"""From a source's rows to records: by the `map` of params.yaml, or by well-known column names."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from tasks.dataset import strict_json
from tasks.dataset.faults import RowError, quoted
from tasks.dataset.readers import json_type
from tasks.dataset.records import Message, Record
from tasks.lineage.console import log
from tasks.lineage.stage import StageError
from tasks.params import Source

Values = Mapping[str, Any]


class Mapper(Protocol):
    """Makes a record of a row's values.

    `spare_id` is the record's id when the source has none, `file` what the record gives as its
    source.  Raises RowError.
    """

    def record(self, values: Values, spare_id: str, file: str) -> Record: ...

    def finish(self) -> None:
        """Raise StageError when it saw rows, and none of them had what the map needs."""


def mapper(source: Source, key: str) -> Mapper:
    """The mapper of a source; `key` is the source's place in params.yaml, for messages."""
    return _Detected(source, key) if source.map is None else _Mapped(source, source.map, key)


# --- by a map -------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


class Template:
    """A text with columns in braces: `{name}`; a brace itself is written twice.

    Nothing else is understood: no attributes, no indices, no format specifications, so a template
    reads columns and no more.  `columns` are those that it reads, in order.
    """

    def __init__(self, text: str, key: str) -> None:
        self.columns: list[str] = []
        literals: list[str] = []
        last = 0
        for match in _TOKEN.finditer(text):
            literals.append(text[last : match.start()].replace("%", "%%"))
            if match[1] is not None:
                self.columns.append(match[1])
                literals.append("%s")
            elif len(match[0]) == 2:
                literals.append(match[0][0])
            else:
                raise StageError(
                    f"params.yaml: {key} is {text!r}: the brace at character {match.start() + 1} "
                    "stands alone; write {column} for a column, {{ or }} for a brace"
                )
            last = match.end()
        literals.append(text[last:].replace("%", "%%"))
        self._text = "".join(literals)

    def fill(self, values: Values, read: Callable[[Values, str], str]) -> str:
        """The text for a row, whose columns `read` makes text.

        Raises:
            RowError: `missing_column`, or `wrong_type` for a value that is no text.
        """
        return self._text % tuple([read(values, column) for column in self.columns])

    def value(self, values: Values) -> Any:
        """What a row has in the one column that this template is, in its own type; else the text.

        Raises:
            RowError: as `fill`; also for what JSON has no spelling of.
        """
        if self._text == "%s":
            return _json_value(_present(values, self.columns[0]), self.columns[0])
        return self.fill(values, _label)


def _present(values: Values, column: str) -> Any:
    if column not in values:
        raise RowError("missing_column", f"column {column!r} is not there")
    return values[column]


def _label(values: Values, column: str) -> str:
    """A text for which a whole number may stand, since it has one spelling only."""
    value = _present(values, column)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _not_text(value, column)


def _string(values: Values, column: str) -> str:
    value = _present(values, column)
    if not isinstance(value, str):
        raise _not_text(value, column)
    return value


def _not_text(value: Any, column: str) -> RowError:
    detail = f"column {column!r} is {json_type(value)}, not a string"
    if isinstance(value, bool | int | float):
        detail += "; write it as a string, or as a field of its own in an answer's mapping"
    return RowError("wrong_type", detail)


def _json_value(value: Any, column: str) -> Any:
    """A value of a row, when JSON can spell it.

    Raises:
        RowError: `wrong_type` or `not_finite`, for what only typed files hold.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("not_finite", f"column {column!r} holds a number that JSON has not")
    if isinstance(value, list):
        for item in value:
            _json_value(item, column)
    elif isinstance(value, dict):
        for item in value.values():
            _json_value(item, column)
    elif value is not None and not isinstance(value, str | int | float):
        raise RowError(
            "wrong_type", f"column {column!r} holds {json_type(value)}, which is no JSON"
        )
    return value


class _Mapped:
    def __init__(self, source: Source, fields: Mapping[str, Any], key: str) -> None:
        self._source = source
        self._saw_rows = False
        self._templates = {
            name: _compile(value, f"{key}.map.{name}") for name, value in fields.items()
        }
        self._columns = {name: tuple(_columns(value)) for name, value in self._templates.items()}
        self._first_columns: list[str] = []
        self._unseen = {
            column: f"{key}.map.{name}"
            for name, columns in self._columns.items()
            for column in columns
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
                f"{self._source.file} has; its columns are {', '.join(self._first_columns)}"
            )

    def record(self, values: Values, spare_id: str, file: str) -> Record:
        self._saw_rows = True
        if self._unseen:
            self._first_columns = self._first_columns or [*values]
            for column in self._unseen.keys() & values.keys():
                del self._unseen[column]
        about = _about(
            self._filled("id", values) if "id" in self._templates else spare_id,
            file,
            self._source.role,
            self._time(values),
            self._optional("group", values),
        )
        if self._source.kind == "text":
            return _text_record(about, self._filled("text", values))
        turns: list[Message] = []
        if system := self._optional("system", values):
            turns.append({"role": "system", "content": system})
        turns.append({"role": "user", "content": self._filled("user", values)})
        if self._source.kind == "chat":
            turns.append({"role": "assistant", "content": self._filled("assistant", values)})
            return _chat_record(about, turns)
        chosen, rejected = self._filled("chosen", values), self._filled("rejected", values)
        return _preference_record(about, turns, chosen, rejected)

    def _filled(self, name: str, values: Values) -> str:
        """The part's text. Words of the template around a blank column do not make it a text."""
        columns = self._columns[name]
        if name in _TEXTS and columns and all(_is_blank(values.get(column)) for column in columns):
            raise RowError("empty_text", f"the {name} text is blank")
        template = self._templates[name]
        if isinstance(template, Template):
            return template.fill(values, _label if name in _LABELS else _string)
        return strict_json.dumps(_answer_of(template, values))

    def _optional(self, name: str, values: Values) -> str | None:
        """An empty cell or a null says that there is none."""
        columns = self._columns.get(name)
        if columns is None or any(_present(values, column) is None for column in columns):
            return None
        return self._filled(name, values) or None

    def _time(self, values: Values) -> str | None:
        """A timestamp of a typed file has one spelling as ISO 8601."""
        columns = self._columns.get("time", ())
        if any(isinstance(values.get(column), datetime.date) for column in columns):
            values = {**values, **{column: _iso(values.get(column)) for column in columns}}
        return self._optional("time", values)


def _iso(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date) else value


def _compile(value: Any, key: str) -> Any:
    """A map's value with each string in it made a template."""
    if isinstance(value, str):
        return Template(value, key)
    if isinstance(value, Mapping):
        return {name: _compile(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_compile(item, f"{key}[{index}]") for index, item in enumerate(value)]
    return value


def columns_read(fields: Mapping[str, Any], key: str) -> dict[str, list[str]]:
    """The columns that each part of a map reads; `key` is the source's place in params.yaml.

    Raises:
        StageError: when a template of the map is none.
    """
    return {
        name: [*_columns(_compile(value, f"{key}.map.{name}"))] for name, value in fields.items()
    }


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
_LABELS = {"id", "group", "assistant", "chosen", "rejected"}
"""What may be a whole number; as a prompt or a document it is a column that was mistaken."""


def _is_blank(cell: Any) -> bool:
    return isinstance(cell, str) and (not cell or cell.isspace())


def _answer_of(value: Any, values: Values) -> Any:
    """A JSON answer: nothing in it is coerced."""
    if isinstance(value, Template):
        return value.value(values)
    if isinstance(value, dict):
        return {name: _answer_of(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [_answer_of(item, values) for item in value]
    return value


# --- by well-known names --------------------------------------------------------------------------

_FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "chat": {
        "messages": ("messages",),
        "sharegpt": ("conversations",),
        "completion": ("prompt", "completion"),
        "instruction": ("instruction", "output"),
    },
    "preference": {"preference": ("chosen", "rejected")},
    "text": {"text": ("text",)},
}
"""Columns by which a format is known, by kind.  Chats: OpenAI's messages, ShareGPT's conversations,
prompt and completion, Alpaca's instruction and output.  Then TRL's preference pairs, whose prompt
may stand in the answers alone, and plain text."""

_BESIDE: dict[str, tuple[str, ...]] = {
    "messages": ("system",),
    "sharegpt": ("system",),
    "completion": ("system",),
    "instruction": ("system", "input", "history"),
    "preference": ("system", "prompt"),
    "text": (),
}
"""Columns that a format also reads where they are."""


class _Detected:
    def __init__(self, source: Source, key: str) -> None:
        self._source = source
        self._key = key
        self._formats = _FORMATS[source.kind]
        self._format = source.read_as.format if source.read_as else None
        self._first_columns: list[str] = []
        self._fitted = False

    def finish(self) -> None:
        if self._fitted or not self._first_columns:
            return
        columns = ", ".join(self._first_columns)
        if self._format is None:
            raise StageError(
                f"params.yaml: {self._key}.map is null, but {self._source.file} has columns "
                f"{columns}, which are no known {self._source.kind} format ({self._known()}); "
                "write a map"
            )
        raise StageError(
            f"params.yaml: {self._key}.read_as.format is {self._format!r}, whose columns are "
            f"{'+'.join(self._formats[self._format])}, but {self._source.file} has {columns}; "
            "correct the format, or write a map"
        )

    def _known(self) -> str:
        return " | ".join("+".join(columns) for columns in self._formats.values())

    def record(self, values: Values, spare_id: str, file: str) -> Record:
        """The first row that fits a format settles it for the source."""
        if not self._fitted:
            self._settle(values)
        about = _about(
            _label(values, "id") if "id" in values else spare_id,
            file,
            self._source.role,
            _optional_time(values),
            None if values.get("group") is None else _label(values, "group") or None,
        )
        match self._format:
            case "messages":
                turns = _chat(_present(values, "messages"), "messages")
                return _chat_record(about, _with_system(values, turns))
            case "sharegpt":
                return _chat_record(about, _with_system(values, _sharegpt(values)))
            case "instruction":
                return _chat_record(about, _with_system(values, _instruction(values)))
            case "completion":
                return _chat_record(about, _with_system(values, _completion(values)))
            case "preference":
                prompt, chosen, rejected = _preference(values)
                return _preference_record(about, _with_system(values, prompt), chosen, rejected)
            case _:
                return _text_record(about, _string(values, "text"))

    def _settle(self, values: Values) -> None:
        self._first_columns = self._first_columns or [*values]
        wanted = self._formats if self._format is None else [self._format]
        fits = (name for name in wanted if values.keys() >= set(self._formats[name]))
        found = next(fits, None)
        if found is None and self._format is None:
            raise RowError("unknown_format", f"columns fit none of: {self._known()}")
        if found is not None:
            self._format, self._fitted = found, True  # type: ignore[assignment]
            self._tell_of_unread(values)

    def _tell_of_unread(self, values: Values) -> None:
        """Which columns of the first row that fits go nowhere, unless params.yaml lists them."""
        if self._source.columns is not None or self._format is None:
            return
        read = {"id", "time", "group", *self._formats[self._format], *_BESIDE[self._format]}
        if unread := [column for column in values if column not in read]:
            log.warning(
                "%s: %s.map is null, so its columns %s are ignored; write a map to use them",
                self._source.file, self._key, ", ".join(map(quoted, unread)),
            )  # fmt: skip


def _optional(values: Values, column: str) -> str | None:
    if values.get(column) is None:
        return None
    return _string(values, column) or None


def _optional_time(values: Values) -> str | None:
    value = values.get("time")
    if isinstance(value, datetime.date):
        return str(_iso(value))
    return _optional(values, "time")


def _with_system(values: Values, turns: list[Message]) -> list[Message]:
    """A column `system` beside turns that have none of their own."""
    system = _optional(values, "system")
    if system is None:
        return turns
    if turns[:1] and turns[0]["role"] == "system":
        raise RowError("bad_messages", "both a column and a message are the system's")
    return [{"role": "system", "content": system}, *turns]


def _instruction(values: Values) -> list[Message]:
    if values.get("history"):
        detail = "history holds earlier turns, which would be lost; give the rows as messages"
        raise RowError("unmapped_history", detail)
    more = _optional(values, "input")
    user = _string(values, "instruction") + (f"\n\n{more}" if more else "")
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": _label(values, "output")},
    ]


def _completion(values: Values) -> list[Message]:
    """Strings, or lists of messages as TRL has them."""
    prompt, completion = _present(values, "prompt"), _present(values, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return _in_turn([*_messages(prompt, "prompt"), *_messages(completion, "completion")])
    return [
        {"role": "user", "content": _string(values, "prompt")},
        {"role": "assistant", "content": _label(values, "completion")},
    ]


_SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
}  # fmt: skip


def _sharegpt(values: Values) -> list[Message]:
    turns = _present(values, "conversations")
    if not isinstance(turns, list):
        raise RowError("bad_messages", f"conversations is {json_type(turns)}, not an array")
    told = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or _named(turn).keys() != {"from", "value"}:
            raise RowError("bad_messages", f"turn {number} must have from and value, no more")
        speaker = turn["from"]
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise RowError("bad_messages", f"turn {number} is from none of: {known}")
        told.append({"role": _SHAREGPT_ROLES[speaker], "content": turn["value"]})
    return _chat(told, "conversations")


def _preference(values: Values) -> tuple[list[Message], str, str]:
    """Prompt and both answers.  A list may hold the answer alone or the whole conversation."""
    chosen, rejected = _present(values, "chosen"), _present(values, "rejected")
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        prompt = _present(values, "prompt")
        turns = _prompt_turns(values, prompt)
        return turns, _label(values, "chosen"), _label(values, "rejected")
    before, better = _answer(chosen, "chosen")
    also_before, worse = _answer(rejected, "rejected")
    if before != also_before:
        raise RowError("bad_messages", "chosen and rejected answer different prompts")
    prompt = values.get("prompt")
    if prompt is None:
        turns = before
    else:
        turns = _prompt_turns(values, prompt)
        if before and before != turns:
            raise RowError("bad_messages", "chosen and rejected do not begin with the prompt")
    _in_turn([*turns, {"role": "assistant", "content": better}])
    return turns, better, worse


def _prompt_turns(values: Values, prompt: Any) -> list[Message]:
    if isinstance(prompt, list):
        turns = _messages(prompt, "prompt")
        _in_turn([*turns, {"role": "assistant", "content": ""}])
        return turns
    return [{"role": "user", "content": _string(values, "prompt")}]


def _answer(value: list[Any], name: str) -> tuple[list[Message], str]:
    """The messages before the answer, and the answer."""
    turns = _messages(value, name)
    if not turns or turns[-1]["role"] != "assistant":
        raise RowError("bad_messages", f"{name} must end with the assistant's message")
    return turns[:-1], turns[-1]["content"]


def _chat(value: Any, name: str) -> list[Message]:
    return _in_turn(_messages(value, name))


def _messages(value: Any, name: str) -> list[Message]:
    """A list of messages, checked one by one."""
    if not isinstance(value, list):
        raise RowError("bad_messages", f"{name} is {json_type(value)}, not an array")
    turns: list[Message] = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise RowError("bad_messages", f"message {number} is {json_type(item)}, not an object")
        if item.keys() != _MESSAGE and _named(item).keys() != _MESSAGE:
            raise RowError("bad_messages", f"message {number} must have role and content, no more")
        content, role = item["content"], item["role"]
        if not isinstance(content, str):
            kind = json_type(content)
            raise RowError("wrong_type", f"content of message {number} is {kind}, not a string")
        turns.append({"role": role, "content": content})
    return turns


_MESSAGE = {"role", "content"}


def _named(item: Mapping[str, Any]) -> dict[str, Any]:
    """What an object says: a typed file has every name in every object, and null where there is
    nothing."""
    return {
        name: value
        for name, value in item.items()
        if value is not None or name in ("content", "value")
    }


def _in_turn(turns: list[Message]) -> list[Message]:
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RowError("bad_messages", "turns must be user, assistant, ..., ending with assistant")
    return turns


# --- records --------------------------------------------------------------------------------------


def _about(id: str, file: str, role: str, time: str | None, group: str | None) -> dict[str, Any]:
    """What every record says of itself, in the schema's order."""
    if not id or id.isspace():
        raise RowError("empty_id", "the id is blank")
    if time is not None:
        try:
            datetime.datetime.fromisoformat(time)
        except ValueError:
            detail = "the time is not ISO 8601, as 2026-08-31T12:00:00Z"
            raise RowError("bad_time", detail) from None
    return {"id": id, "source": file, "role": role, "time": time, "group": group}


def _not_empty(text: str, name: str) -> str:
    if not text or text.isspace():
        raise RowError("empty_text", f"the {name} text is blank")
    return text


def _chat_record(about: dict[str, Any], turns: list[Message]) -> Record:
    for turn in turns:
        _not_empty(turn["content"], turn["role"])
    about["messages"] = turns
    return about  # type: ignore[return-value]


def _preference_record(
    about: dict[str, Any], turns: list[Message], chosen: str, rejected: str
) -> Record:
    for turn in turns:
        _not_empty(turn["content"], turn["role"])
    _not_empty(chosen, "chosen")
    _not_empty(rejected, "rejected")
    if chosen == rejected:
        raise RowError("same_answers", "chosen and rejected are equal")
    about |= {"prompt": turns, "chosen": chosen, "rejected": rejected}
    return about  # type: ignore[return-value]


def _text_record(about: dict[str, Any], text: str) -> Record:
    about["text"] = _not_empty(text, "document")
    return about  # type: ignore[return-value]
