"""Why a single row cannot be used."""

from __future__ import annotations

import re


class RowError(Exception):
    """A row cannot be used; the rest of the file can.

    `reason` is a short slug that rejects are counted by, `detail` says more about this row.
    Neither may hold the row's text: both are shown to people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


_PLAIN_NAME = re.compile(r"[^\W\d][^\W\d_]*(?:[ _.-]?[^\W_]{1,20}){0,3}")


def quoted(name: str) -> str:
    """A name that a row gives, as a detail may show it: a sentence or a number is no name."""
    if len(name) <= _LONGEST_NAME and _PLAIN_NAME.fullmatch(name):
        return repr(name)
    return f"of {len(name)} characters"


_LONGEST_NAME = 40
