"""When a retraining may begin, and the journal of those that did.

One at a time, not too soon after the last, not too many in a week, and never twice for the same data.
The lock is the kernel's, so that a worker that is killed leaves none behind; an entry of the journal
that began and did not end, while nobody holds the lock, is then known to have been killed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from tasks.lineage import whole
from tasks.lineage.stage import FAULT, STATE, StageError
from tasks.params import Retraining

FOLDER = STATE / "retraining"
WEEK = timedelta(days=7)

Event = Literal["begun", "stopped", "ended", "skipped"]


@dataclass(frozen=True)
class Entry:
    """A line of the journal.

    A retraining that has begun goes on until it has ended; stopped is one that a fault of the machine
    ended, which goes on when it is started again.
    """

    event: Event
    at: datetime
    check: str
    data: str
    """The id of the data that arrived."""
    candidate: str | None = None
    """NAME@VERSION; None when none was made."""
    why: str | None = None
    """Why it began, stopped, failed or was skipped."""


class Busy(Exception):
    """Another retraining holds the lock."""


@contextlib.contextmanager
def alone(folder: Path = FOLDER) -> Iterator[None]:
    """Hold the lock of retraining, which the system frees when this process dies, however that happens.

    Raises:
        Busy: when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy from None
    try:
        yield
    finally:
        lock.release()


class Journal:
    """What began, and what came of it, oldest first. It is written by whoever holds the lock."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """
        Raises:
            StageError: when it cannot be read.
        """
        self.path = folder / "journal.jsonl"
        self.entries = self._read()

    def _read(self) -> list[Entry]:
        if not self.path.exists():
            return []
        found = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
                found.append(Entry(**{**values, "at": datetime.fromisoformat(values["at"])}))
            except (ValueError, TypeError, KeyError) as error:
                damaged = StageError(
                    f"{self.path}:{number} is no entry ({error}), so nobody knows when the last "
                    f"retraining was; mend the line, or `rm {self.path}` to begin anew"
                )
                damaged.exit_code = FAULT
                raise damaged from None
        return found

    def add(self, entry: Entry) -> None:
        """Write an entry; the file is in place whole, or as it was."""
        self._write([*self.entries, entry])

    def _write(self, entries: list[Entry]) -> None:
        lines = [
            json.dumps(asdict(entry) | {"at": entry.at.isoformat()}, ensure_ascii=False)
            for entry in entries
        ]
        whole.write_text(self.path, "".join(f"{line}\n" for line in lines))
        self.entries = entries

    def settle(self, now: datetime) -> list[str]:
        """Date what lies in the future to now: the clock was wrong then, or is now.  So it neither
        opens what cooldown and budget close, nor closes it for as long as the clock was wrong.

        Returns:
            What was dated anew, a line each.
        """
        ahead = [entry for entry in self.entries if entry.at > now]
        if ahead:
            self._write([replace(entry, at=min(entry.at, now)) for entry in self.entries])
        return [
            f"the journal says that check {entry.check} had {entry.event} at {_said(entry.at)}, which "
            "is still to come: the clock has changed, and it counts as now"
            for entry in ahead
        ]

    def unfinished(self, data: str) -> Entry | None:
        """How the retraining on the data began, if it has not ended."""
        of = [e for e in self.entries if e.data == data and e.event in ("begun", "ended")]
        return of[-1] if of and of[-1].event == "begun" else None

    def was_skipped(self, check: str, why: str) -> bool:
        """Whether the same was said of the same check before."""
        said = [(entry.event, entry.check, entry.why) for entry in self.entries]
        return ("skipped", check, why) in said

    def open(self) -> list[str]:
        """The data of those that have not ended, which go on when started again."""
        known = dict.fromkeys(entry.data for entry in self.entries)
        return [data for data in known if self.unfinished(data)]

    def candidate(self, data: str) -> str | None:
        """The candidate that the data has led to."""
        made = [entry.candidate for entry in self.entries if entry.data == data]
        return next((name for name in made if name), None)


def objection(entries: Sequence[Entry], settings: Retraining, now: datetime) -> str | None:
    """Why none may begin now, by cooldown and budget; None when one may."""
    begun = sorted(entry.at for entry in entries if entry.event == "begun")
    if settings.per_week == 0:
        return "retraining.per_week is 0, which switches retraining off"
    recent = [at for at in begun if at > now - WEEK]
    if len(recent) >= settings.per_week:
        free = recent[-settings.per_week] + WEEK
        return (
            f"{len(recent)} began within seven days and retraining.per_week is "
            f"{settings.per_week}; the next may begin at {_said(free)}"
        )
    free = begun[-1] + timedelta(hours=settings.cooldown_hours) if begun else now
    if free > now:
        return (
            f"the last began at {_said(begun[-1])} and retraining.cooldown_hours is "
            f"{settings.cooldown_hours:g}; the next may begin at {_said(free)}"
        )
    return None


def clock() -> datetime:
    """Now."""
    return datetime.now(UTC).replace(microsecond=0)


def _said(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")
