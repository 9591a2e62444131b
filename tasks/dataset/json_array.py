"""A strict, streaming reader of a JSON array of objects, element by element, in bounded memory.

Brackets and strings alone say where an element ends, so one that is wrong inside costs itself.  When
the brackets themselves are wrong, reading goes on at the next line that begins as the elements above
did; an array that is written in one line has none, and the rest of it is one reject.  So is the
rest of a file of which more than a bounded part would have to be looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from tasks.dataset.faults import RowError
from tasks.dataset.readers import BadRow, Row, Rules, check_encoding, json_object, too_long
from tasks.lineage.stage import StageError

CHUNK_BYTES = 1 << 16
MAX_BRACKETS = 1000
RESCANS = 64
"""Elements without an end that a file may have, each as long as a row may be: what was looked at to
find an end is looked at again for the elements in it, which must not cost the square of the file."""
_NEXT = re.compile(rb'["\[\]{},]')
_STRING = re.compile(rb'[^"\\\n]*(?:\\[^\n][^"\\\n]*)*')
_SPACE = re.compile(rb"[ \t\r\n]*")
_CLOSER = {b"[": b"]", b"{": b"}"}


class _Broken(Exception):
    """The brackets of an element are wrong, or it is too long; the text says how."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_json(file: IO[bytes], name: str, rules: Rules) -> Iterator[Row | BadRow]:
    """The elements of an array; `line` is the line on which an element begins.

    Raises:
        StageError: when the stream holds no array.
    """
    window = _Window(file)
    if not (begin := window.skip_space()):
        return
    check_encoding(name, window.head())
    if begin != b"[":
        raise StageError(
            f"{name}:{window.line}: begins with byte {begin[0]:02X}, not with [; write an array of "
            "objects, or one object a line and read_as: {container: jsonl}"
        )
    window.take(1)
    comma = True  # none is needed before the first element
    rescans = RESCANS * max(rules.max_line_bytes, CHUNK_BYTES)  # bytes
    while (begin := window.skip_space()) not in (b"", b"]"):
        line, byte = window.line, window.byte
        element = _Element(window, rules.max_line_bytes)
        try:
            raw = window.take(element.length())
        except _Broken as fault:
            seen = element.seen
            bad, found = _recover(element, fault, again=rescans > 0)
            rescans -= max(0, seen - (window.byte - byte))
            yield bad
            if not found:
                return
            comma = True
            continue
        yield _row(line, byte, raw, rules, comma=comma)
        comma = _take_comma(window)
        if comma and window.skip_space() == b"]":
            detail = "no element stands behind the last comma"
            yield BadRow(window.line, window.byte, window.byte, b"", "invalid_json", detail)
    line, byte = window.line, window.byte
    if begin == b"":
        yield BadRow(line, byte, byte, b"", "truncated_json", "the array does not end")
        return
    window.take(1)
    if window.skip_space():
        line, byte, head = window.line, window.byte, window.head()
        window.drop_rest()
        detail = "there is more behind the end of the array"
        yield BadRow(line, byte, window.byte, head, "invalid_json", detail)


def _row(line: int, byte: int, raw: bytes, rules: Rules, *, comma: bool) -> Row | BadRow:
    end = byte + len(raw)
    try:
        if not comma:
            raise RowError("invalid_json", "no comma stands before the element")
        if not raw:
            raise RowError("invalid_json", "an element is missing")
        return Row(line, byte, end, raw, json_object(raw, rules))
    except RowError as fault:
        return BadRow(line, byte, end, raw, fault.reason, fault.detail)


def _take_comma(window: _Window) -> bool:
    comma = window.skip_space() == b","
    if comma:
        window.take(1)
    return comma


def _recover(element: _Element, fault: _Broken, *, again: bool) -> tuple[BadRow, bool]:
    """Reject an element that has no end, and go to where the next one begins, if that is known and
    what was looked at may be looked at `again`."""
    window = element.window
    line, byte, raw = window.line, window.byte, window.head()
    detail, found = str(fault), True
    if fault.reason == "line_too_long" and not window.sees_next():
        try:
            length = element.skip()
            _take_comma(window)
            detail = too_long(length, element.limit)
            return BadRow(line, byte, byte + length, raw, fault.reason, detail), True
        except _Broken as also:
            detail += f", and {also}"
    if not again:
        window.drop_rest()
        detail += (
            "; too many elements above have no end either, so the rest of the file is not read"
        )
        return BadRow(line, byte, window.byte, raw, fault.reason, detail), False
    found = window.to_next()
    if not found:
        detail += (
            "; where the next element begins is not known, so the rest of the file is not read"
        )
    cut = fault.reason == "truncated_json" and found
    return BadRow(
        line, byte, window.byte, raw, "invalid_json" if cut else fault.reason, detail
    ), found


class _Window:
    """The stream from `byte` on, of which some is in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.buffer = b""
        self.at = 0  # where `byte` is in the buffer
        self.byte = 0
        self.line = 1
        self._next: re.Pattern[bytes] | None = None  # how the line of an element begins
        self._overlap = 0

    def more(self) -> bool:
        """Hold more of the stream; `at` becomes 0."""
        chunk = self._file.read(CHUNK_BYTES)
        self.buffer, self.at = self.buffer[self.at :] + chunk, 0
        return bool(chunk)

    def take(self, length: int) -> bytes:
        """Go on behind bytes that are in memory."""
        taken = self.buffer[self.at : self.at + length]
        self.at += length
        self.byte += length
        self.line += taken.count(b"\n")
        return taken

    def head(self) -> bytes:
        """The next bytes, to be shown."""
        return self.buffer[self.at : self.at + CHUNK_BYTES]

    def skip_space(self) -> bytes:
        """Go to the next byte that is no space; that byte, or none at the end."""
        indent: bytes | None = None
        while True:
            end = _SPACE.match(self.buffer, self.at).end()  # type: ignore[union-attr]
            _, newline, behind = self.take(end - self.at).rpartition(b"\n")
            if newline or indent is not None:
                indent = behind if newline else (indent or b"") + behind
            if self.at < len(self.buffer) or not self.more():
                break
        found = self.buffer[self.at : self.at + 1]
        if found == b"{" and indent is not None and self._next is None:
            self._next = re.compile(rb"\n" + re.escape(indent) + rb"\{")
            self._overlap = len(indent) + 1
        return found

    def sees_next(self) -> bool:
        """Whether a line that begins as an element's is in memory."""
        return self._next is not None and self._next.search(self.buffer, self.at) is not None

    def to_next(self) -> bool:
        """Go to the next line that begins as an element's, or to the end."""
        while self._next is not None:
            if found := self._next.search(self.buffer, self.at):
                self.take(found.start() + 1 - self.at)
                return True
            self.take(max(0, len(self.buffer) - self.at - self._overlap))
            if not self.more():
                break
        self.drop_rest()
        return False

    def drop_rest(self) -> None:
        self.take(len(self.buffer) - self.at)
        while self.more():
            self.take(len(self.buffer))


class _Element:
    """Finds the end of the element at the window's start."""

    def __init__(self, window: _Window, limit: int) -> None:
        self.window = window
        self.limit = limit
        self.seen = 0  # bytes of the element that were looked at
        self._closers: list[bytes] = []
        self._in_string = False
        self._ended = False

    def length(self) -> int:
        """The element's length in bytes; all of it is then in memory.

        Raises:
            _Broken: when it has no end, or none within the limit.
        """
        while not self._scan(self.window.at + self.seen):
            if not self.window.more():
                raise _Broken("truncated_json", "the file ends inside an element")
            if self.seen > self.limit:
                raise _Broken("line_too_long", f"more than {self.limit} bytes")
        if self.seen > self.limit:
            raise _Broken("line_too_long", f"more than {self.limit} bytes")
        return self.seen

    def skip(self) -> int:
        """Go behind an element that is too long, of which `length` has looked at a part.

        Raises:
            _Broken: when it has no end.
        """
        length = self.seen
        self.window.take(length)
        while not self._ended:
            self._scan(self.window.at)
            length += self.seen
            self.window.take(self.seen)
            if not self._ended and not self.window.more():
                raise _Broken("truncated_json", "the file ends inside it")
        return length

    def _scan(self, at: int) -> bool:
        """Look at what is in memory from `at` on; whether the element ends there."""
        at, self._ended = self._end(self.window.buffer, at)
        self.seen = at - self.window.at
        return self._ended

    def _broken(self, at: int, reason: str, detail: str) -> _Broken:
        self.seen = at - self.window.at
        return _Broken(reason, detail)

    def _end(self, buffer: bytes, at: int) -> tuple[int, bool]:
        """Behind the element and True, or behind what was looked at and False."""
        closers = self._closers
        while True:
            if self._in_string:
                at = _STRING.match(buffer, at).end()  # type: ignore[union-attr]
                stop = buffer[at : at + 2]
                if stop[:1] == b"\n" or stop == b"\\\n":
                    raise self._broken(at, "invalid_json", "a string is not closed on its line")
                if stop[:1] != b'"':
                    return at, False
                self._in_string = False
                at += 1
                if not closers:  # the element is a string
                    return at, True
            token = _NEXT.search(buffer, at)
            if token is None:
                return len(buffer), False
            what, at = token[0], token.end()
            if what == b'"':
                self._in_string = True
            elif what in _CLOSER:
                closers.append(_CLOSER[what])
                if len(closers) > MAX_BRACKETS:
                    why = f"brackets are nested more than {MAX_BRACKETS} deep"
                    raise self._broken(at, "too_deep", why)
            elif not closers:
                if what == b"}":
                    raise self._broken(at, "invalid_json", "} closes what is not open")
                return token.start(), True  # the element is a number or a word
            elif what != b",":
                if closers.pop() != what:
                    why = f"{what.decode()} closes what is not open"
                    raise self._broken(at, "invalid_json", why)
                if not closers:
                    return at, True
