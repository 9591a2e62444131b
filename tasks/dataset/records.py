"""The record schema: what a row is, from `ingest` on.

Three files in a folder, one JSON object a line, each file there even when it is empty:
chat.jsonl, preference.jsonl and text.jsonl.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypedDict, get_args

import orjson

from tasks.lineage.stage import StageError

Kind = Literal["chat", "preference", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class About(TypedDict):
    """What every record says of itself.

    `source` is the file below data/raw, or the URL; `id` is unique within it; `role` says what the
    row is for (train, general, test, regression, benchmark); `time` is an ISO 8601 string, `group`
    a name that rows of one origin share.
    """

    id: str
    source: str
    role: str
    time: str | None
    group: str | None


class Chat(About):
    """`messages`: an optional system message, then user and assistant in turn; the last is the
    assistant's."""

    messages: list[Message]


class Preference(About):
    """`prompt`: messages up to the answer; `chosen` and `rejected`: the better and worse one."""

    prompt: list[Message]
    chosen: str
    rejected: str


class Text(About):
    text: str


Record = Chat | Preference | Text


def read(path: Path) -> Iterator[Any]:
    """The records of a file that a stage wrote, one at a time.

    Raises:
        StageError: at a line that is no JSON, for which the file was edited by hand.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise damaged(path, number, error.msg) from None


def damaged(path: Path, line: int, fault: str) -> StageError:
    """The error for a line, counted from 1, that no stage has written so."""
    return StageError(
        f"{path}:{line}: {fault}; stage outputs are not edited by hand, "
        f"remove {path.parent} and run the stage that writes it"
    )


def dumps(record: Mapping[str, Any]) -> bytes:
    """One line of a record file, its end included."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class Writer:
    """Open JSONL files of a folder, by name without suffix."""

    def __init__(self, files: Mapping[str, IO[bytes]]) -> None:
        self._files = files
        self.rows = dict.fromkeys(files, 0)

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        self.write_line(name, dumps(record))

    def write_line(self, name: str, line: bytes) -> None:
        """Write a record that is serialised already, its line end included."""
        self._files[name].write(line)
        self.rows[name] += 1


@contextlib.contextmanager
def writing(folder: Path, names: Sequence[str] = KINDS) -> Iterator[Writer]:
    """Write `<name>.jsonl` files into a new folder."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.jsonl").open("wb")) for name in names}
        yield Writer(files)


def prompt(record: Mapping[str, Any]) -> list[Message]:
    """The messages of a chat or preference record before the answer."""
    messages: list[Message] = record["prompt"] if "prompt" in record else record["messages"][:-1]
    return messages


def user_text(record: Mapping[str, Any]) -> str:
    """What the user says, all turns, a line break between; the text of a text record."""
    if "text" in record:
        text: str = record["text"]
        return text
    return "\n".join(m["content"] for m in prompt(record) if m["role"] == "user")
