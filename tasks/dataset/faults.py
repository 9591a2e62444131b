"""Why a single row cannot be used."""

from __future__ import annotations


class RowError(Exception):
    """A row cannot be used; the rest of the file can.

    `reason` is a short slug that rejects are counted by, `detail` says more about this row.
    Neither may hold the row's text: both are shown to people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
