"""Profiles: files of values that are laid over params.yaml, which keeps its comments and layout."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from tasks.params import ParamsError, load

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
        return f"{self.key}: {self.before or 'null'} -> {self.after}"


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
    for change in sorted(changes, key=lambda change: change.start, reverse=True):
        text = _replaced(text, change)
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
    places = dict(_leaves(YAML().compose(params), ()))
    wanted, present = (YAML(typ="safe").load(text) for text in (profile, params))
    changes = []
    for loc, node in _leaves(YAML().compose(profile), ()):
        key = ".".join(loc)
        if loc not in places:
            near = difflib.get_close_matches(key, map(".".join, places), n=1)
            remedy = f"did you mean {near[0]}?" if near else "remove it"
            raise ProfileError(f"{path}: {key} is no value of params.yaml; {remedy}")
        if _value(wanted, loc) == _value(present, loc):
            continue
        if not (_is_inline(node) and _is_inline(places[loc])):
            raise ProfileError(f"{path}: {key} spans lines; a profile replaces values of one line")
        start, end = _span(places[loc])
        first, last = _span(node)
        changes.append(Change(key, start, end, params[start:end], profile[first:last]))
    return changes


def _leaves(node: Node, loc: Loc) -> Iterator[tuple[Loc, Node]]:
    """Every value below the mappings that are written as blocks, with its keys."""
    if isinstance(node, MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield from _leaves(value, (*loc, key.value))
    else:
        yield loc, node


def _value(values: Any, loc: Loc) -> Any:
    return reduce(lambda mapping, key: mapping[key], loc, values)


def _is_inline(node: Node) -> bool:
    if isinstance(node, ScalarNode):
        return node.style not in ("|", ">")
    return bool(node.start_mark.line == node.end_mark.line)


def _span(node: Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


def _replaced(text: str, change: Change) -> str:
    """Replace a value; a comment behind it stays in its column, if the value leaves it there."""
    before, rest = text[: change.start], text[change.end :]
    if before.endswith(":"):
        before += " "
    comment = re.match(r"( +)#", rest)
    if comment is None:
        return before + change.after + rest
    above, line = ["", *before.splitlines()][-2:]
    end = len(line) + len(change.before)
    column = end + len(comment[1])
    if 0 < above.find(" #") < end:  # a long value had pushed it aside: back below the one above
        column = above.find(" #") + 1
    padding = max(column - len(line) - len(change.after), 1)
    return before + change.after + " " * padding + rest[len(comment[1]) :]
