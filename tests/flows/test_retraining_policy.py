"""When a retraining may begin, by a clock that the tests hold."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows import retraining_policy
from flows.retraining_policy import Busy, Entry, Journal, objection
from tasks.lineage.stage import FAULT, StageError
from tasks.params import Retraining

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
REPOSITORY = Path(__file__).parents[2]


def settings(**changes: object) -> Retraining:
    values = {"cooldown_hours": 24.0, "per_week": 2, "test_share": 0.3, "notify": None}
    return Retraining.model_validate({**values, **changes})


def begun(hours_ago: float, data: str = "d") -> Entry:
    return Entry("begun", NOW - hours_ago * HOUR, "check", data)


@pytest.mark.parametrize(
    ("hours_ago", "says"),
    [
        ([], None),
        ([24], None),
        ([23.9], "the last began at 2026-11-21 12:06 UTC and retraining.cooldown_hours is 24; the "
                 "next may begin at 2026-11-22 12:06 UTC"),
        ([100, 25], "2 began within seven days and retraining.per_week is 2; the next may begin at "
                    "2026-11-25 08:00 UTC"),
        ([168, 25], None),
        ([167, 166, 165], "3 began within seven days and retraining.per_week is 2; the next may begin "
                          "at 2026-11-22 14:00 UTC"),
    ],
)  # fmt: skip
def test_cooldown_and_budget(hours_ago: list[float], says: str | None) -> None:
    assert objection([begun(hours) for hours in hours_ago], settings(), NOW) == says


def test_none_a_week_is_none() -> None:
    assert "switches retraining off" in str(objection([], settings(per_week=0), NOW))
    assert objection([begun(0)], settings(cooldown_hours=0.0), NOW) is None


def test_only_beginnings_count() -> None:
    others = [Entry(event, NOW, "c", "d") for event in ("skipped", "ended", "stopped")]
    assert objection(others, settings(), NOW) is None


def test_the_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(begun(1))
    journal.add(Entry("ended", NOW, "check", "d", candidate="s@4", why="ü\u2028\x85\n"))
    again = Journal(tmp_path)
    assert again.entries == journal.entries
    assert again.candidate("d") == "s@4"
    assert again.candidate("other") is None


def test_what_has_begun_and_not_ended_was_killed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(begun(30, "a"))
    journal.add(begun(2, "b"))
    journal.add(Entry("stopped", NOW, "check", "b", why="the disk is full"))
    assert journal.unfinished("a") == begun(30, "a")
    assert journal.unfinished("b") == begun(2, "b")
    journal.add(Entry("ended", NOW, "check", "b"))
    assert journal.unfinished("b") is None


def test_a_clock_that_went_back_neither_opens_nor_closes_it(tmp_path: Path) -> None:
    """An entry of next year counts as now: 24 hours from now on, and not one year."""
    journal = Journal(tmp_path)
    journal.add(begun(-365 * 24))
    (said,) = journal.settle(NOW)
    assert said.startswith("the journal says that check check had begun at 2027-11-22 12:00 UTC")
    assert objection(journal.entries, settings(), NOW) is not None
    later = Journal(tmp_path)
    assert later.settle(NOW + HOUR) == []
    assert objection(later.entries, settings(), NOW + 23 * HOUR) is not None
    assert objection(later.entries, settings(), NOW + 24 * HOUR) is None


NO_ZONE = '{"event": "begun", "at": "2026-11-22T12:00:00", "check": "c", "data": "d"}'


@pytest.mark.parametrize("line", ["", "{", "[]", '{"event": "begun"}', '{"at": "soon"}', NO_ZONE])
def test_a_damaged_journal_is_told(tmp_path: Path, line: str) -> None:
    Journal(tmp_path).add(begun(1))
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(StageError, match=r"journal.jsonl:2 is no entry .* mend the line") as raised:
        Journal(tmp_path)
    assert raised.value.exit_code == FAULT


def test_one_at_a_time_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from flows import retraining_policy\n"
        "with retraining_policy.alone(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy), retraining_policy.alone(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with retraining_policy.alone(tmp_path):
        pass
