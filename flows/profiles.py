"""Profiles: files of values that are laid over params.yaml, which keeps its comments and layout."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from tasks.params import ParamsError, is_section, load

FOLDER = Path("profiles")


class ProfileError(Exception):
    """A profile cannot be used. The message says why, and how to mend it."""


@dataclass(frozen=True)
class Change:
    """A value of params.yaml that a profile replaces: where it stands, and both as written."""

    key: str
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before) or 'null'} -> {_shown(self.after)}"


def known() -> list[str]:
    """The names of the profiles there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def use(name: str, params: Path) -> list[Change]:
    """Lay a profile's values over a params file, and say which ones that changed.

    The file is written whole or not at all, and only when the outcome keeps every rule of it.

    Raises:
        ProfileError: for an unknown profile, or one that does not fit the file.
    """
    if name not in known():
        raise ProfileError(f"{name} is no profile; known: {', '.join(known())}")
    profile = FOLDER / f"{name}.yaml"
    return lay(_read(profile), profile, params)


def lay(values: str, origin: Path, params: Path) -> list[Change]:
    """Lay the YAML text `values` over a params file, as `use` does; `origin` names it in errors."""
    text = _read(params)
    changes = _changes(values, text, origin)
    length = len(text)
    for change in sorted(changes, key=lambda change: change.start):  # each below what is done
        text = _replaced(text, change, len(text) - length)
    partial = params.with_name(f".{params.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="")
    try:
        load(partial)
    except ParamsError as error:
        faults = "\n".join(f"  {fault.key}: {fault.text}" for fault in error.problems)
        raise ProfileError(f"{origin} does not make a sound file of {params}:\n{faults}") from None
    else:
        if changes:
            partial.replace(params)
    finally:
        partial.unlink(missing_ok=True)
    return changes


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
            text = file.read()
        YAML(typ="safe").load(text)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ProfileError(f"{path} cannot be read: {error}") from None
    return text


Loc = tuple[str, ...]


def _changes(profile: str, params: str, path: Path) -> list[Change]:
    """What differs between a profile's values and the same ones of the params file."""
    places = {loc: found for loc, *found in _leaves(YAML().compose(params), ())}
    wanted, present = (YAML(typ="safe").load(text) for text in (profile, params))
    changes = []
    for loc, name, node in _leaves(YAML().compose(profile), ()):
        key = ".".join(loc)
        if loc not in places:
            near = difflib.get_close_matches(key, map(".".join, places), n=1)
            remedy = f"did you mean {near[0]}?" if near else "remove it"
            raise ProfileError(f"{path}: {key} is no value of params.yaml; {remedy}")
        if _value(wanted, loc) == _value(present, loc):
            continue
        key_there, there = places[loc]
        if _is_inline(node) and _is_inline(there):
            (start, end), (first, last) = _span(there), _span(node)
            after = profile[first:last]
        else:
            (start, end), (first, last) = (
                _block(params, key_there, there),
                _block(profile, name, node),
            )
            after = _with_ends_of(params, profile[first:last])
        changes.append(Change(key, start, end, params[start:end], after))
    return changes


def _shown(text: str) -> str:
    """A value in a line."""
    lines = text.strip().splitlines()
    return text.strip() if len(lines) < 2 else f"({len(lines)} lines)"


def _with_ends_of(text: str, block: str) -> str:
    """A block with the line ends of a text."""
    return "\n".join(block.splitlines()).replace("\n", "\r\n" if "\r\n" in text else "\n")


def _leaves(node: Node, loc: Loc) -> Iterator[tuple[Loc, Node, Node]]:
    """Every value below the sections that are written as blocks: where it is, its key, and itself."""
    for key, value in node.value:
        inner = (*loc, key.value)
        if isinstance(value, MappingNode) and not value.flow_style and is_section(inner):
            yield from _leaves(value, inner)
        else:
            yield inner, key, value


def _value(values: Any, loc: Loc) -> Any:
    return reduce(lambda mapping, key: mapping[key], loc, values)


def _is_inline(node: Node) -> bool:
    if isinstance(node, ScalarNode):
        return node.style not in ("|", ">")
    return bool(node.start_mark.line == node.end_mark.line)


def _span(node: Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


def _block(text: str, key: Node, value: Node) -> tuple[int, int]:
    """All that stands behind a key, to the end of the value's last line: its comments too, which a
    profile brings along."""
    start = text.index(":", key.end_mark.index) + 1
    end = text.find("\n", end_of(text, value))
    end = len(text) if end < 0 else end
    return start, end - (text[end - 1] == "\r")


def end_of(text: str, node: Node) -> int:
    """Where a value ends; the mark of one in several lines lies behind the comments below it."""
    if isinstance(node, CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return end_of(text, last[1] if isinstance(node, MappingNode) else last)
    end: int = node.end_mark.index
    return len(text[:end].rstrip()) if not _is_inline(node) else end


def _replaced(text: str, change: Change, moved: int) -> str:
    """Replace a value that stands so many characters further down than it did; a comment behind it stays
    in its column, if the value leaves it there."""
    before, rest = text[: change.start + moved], text[change.end + moved :]
    if before.endswith(":") and not change.after[:1].isspace():
        before += " "
    comment = re.match(r"( +)#", rest)
    if comment is None:
        return before + change.after + rest
    *above, line = before.splitlines()
    end = len(line) + len(change.before)
    column = end + len(comment[1])
    aligned = _aligned(above)
    if aligned is not None and aligned < end:
        column = aligned  # a long value had pushed it aside: back below the others
    padding = max(column - len(line) - len(change.after), 1)
    return before + change.after + " " * padding + rest[len(comment[1]) :]


def _aligned(lines: Sequence[str]) -> int | None:
    """The column of the last comment behind a value that no long value has pushed aside."""
    behind = (re.match(r"(\s*[^#\s][^#]*?\s{2,})#", line) for line in reversed(lines))
    return next((len(found[1]) for found in behind if found), None)
