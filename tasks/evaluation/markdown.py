"""Text of rows, models and people inside Markdown: it stays text."""

from __future__ import annotations

import re

_MARKUP = re.compile(
    r"([\\`*\[\]|~$])"
    r"|((?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"  # within a word it is a letter
    r"|(^[#+\-]|(?:(?<=^\d)|(?<=^\d\d))[.)](?=\s|$))"  # headings and lists
    r"|((?<=/)/|(?<=\bwww)\.)"  # addresses become links by themselves
)
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape(text: str) -> str:
    """The text on one line, without meaning in Markdown or in the HTML that Markdown lets through."""
    line = " ".join(str(text).split())
    escaped = _MARKUP.sub(r"\\\g<0>", line)
    return "".join(_NAMED.get(letter, letter) for letter in escaped)


def code(text: str) -> str:
    """The text as a code span, fenced by more backticks than it holds (CommonMark, section 6.1);
    in a table a bar would still end the cell, so it is written as another character."""
    line = " ".join(str(text).split()).replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"
