"""The reject file: every row that is not used, with its place and a reason, and their counts."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import orjson

from tasks.dataset.privacy import redact, snippet
from tasks.lineage.stage import STATE, StageError

SAMPLES = 3
"""Rejected rows of a source that a failed gate shows."""

DETAIL_CHARACTERS = 300


class Rejects:
    """An open reject file.

    A line is {"source", "file", "line", "byte", "id", "reason", "detail", "snippet"}; personal data
    is redacted in all fields, and in the snippet, which is the row's own text, also what looks like it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._kept = STATE / "rejected" / path.name.removeprefix(".").removesuffix(".partial")
        self._kept.unlink(missing_ok=True)  # what an earlier run left is no news of this one
        self._file = path.open("wb")
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._samples: defaultdict[str, list[str]] = defaultdict(list)

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(
        self,
        source: str,
        reason: str,
        detail: str,
        row: bytes | str,
        *,
        id: str | None = None,
        line: int | None = None,
        byte: int | None = None,
        under: str | None = None,
    ) -> None:
        """Write one reject, counted under its source (or under another heading).

        `line` counts from 1; `byte` is the offset of the line's first byte; both are known where
        the source file is read.
        """
        detail = _bounded(redact(detail)[0])  # told by the pipeline: numbers and names stay
        id = None if id is None else redact(id)[0]
        entry = {
            "source": source,
            "file": source if line is not None else None,
            "line": line,
            "byte": byte,
            "id": id,
            "reason": reason,
            "detail": detail,
            "snippet": snippet(row),
        }
        self._file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        heading = under or source
        self._counts[heading][reason] += 1
        if len(self._samples[heading]) < SAMPLES:
            place = f"{source}:{line} (byte {byte})" if line is not None else f"{source} {id}"
            self._samples[heading].append(f"{place} {reason}: {detail}")

    def count(self, heading: str) -> int:
        """Rows rejected under a heading."""
        return sum(self._counts[heading].values())

    def by_reason(self, heading: str) -> dict[str, int]:
        """Rejected rows by reason, the commonest first."""
        counts = self._counts[heading].items()
        return dict(sorted(counts, key=lambda item: (-item[1], item[0])))

    def total(self) -> dict[str, int]:
        """Rejected rows by reason, under all headings, reasons in alphabetical order."""
        counts: Counter[str] = Counter()
        for found in self._counts.values():
            counts.update(found)
        return dict(sorted(counts.items()))

    def over(self, rows: Mapping[str, int], limit: float, key: str) -> list[str]:
        """A complaint for each heading under which more than a share of the rows is rejected.

        The outputs of a failed stage are discarded, so a complaint shows the first rejects itself,
        and the last one names the file in which `keep` has them all.
        """
        complaints = [
            self._complaint(heading, count, limit, key)
            for heading, count in rows.items()
            if self.count(heading) > limit * count
        ]
        if complaints:
            complaints.append(f"All of them: {self.keep()}")
        return complaints

    def keep(self) -> Path:
        """Copy what was rejected so far to the state folder, where it outlives a failed stage."""
        if not self._file.closed:
            self._file.flush()
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        partial = self._kept.with_suffix(f".{os.getpid()}.partial")
        shutil.copyfile(self._path, partial)
        partial.replace(self._kept)
        return self._kept

    def _complaint(self, heading: str, rows: int, limit: float, key: str) -> str:
        count = self.count(heading)
        reasons = self.by_reason(heading)
        common = ", ".join(f"{reason} {reasons[reason]}" for reason in list(reasons)[:3])
        return (
            f"{heading}: {count} of {rows} rows ({count / rows:.1%}) rejected, "
            f"{key} allows {limit:.1%}; commonest: {common}. "
            f"Mend the rows, or raise {key}. The first:"
        ) + "".join(f"\n  {sample}" for sample in self._samples[heading])


def _bounded(detail: str) -> str:
    return detail if len(detail) <= DETAIL_CHARACTERS else detail[: DETAIL_CHARACTERS - 1] + "…"


def account(place: str, rows_in: int, rows_out: int, rejected: int) -> None:
    """Law 9: rows in = rows out + rows rejected.

    Raises:
        StageError: when a row went missing, which is a fault of the code.
    """
    if rows_in != rows_out + rejected:
        raise StageError(
            f"{place}: {rows_in} rows in, but {rows_out} out and {rejected} rejected; "
            "a row went missing, which is a fault of the stage's code"
        )
