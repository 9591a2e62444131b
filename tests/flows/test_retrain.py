"""From a drift check to a candidate that waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows import retraining

if TYPE_CHECKING:
    from retraining_project import Project

pytest_plugins = ("retraining_project",)


def test_try(drifted: Project, prefect_api, capsys) -> None:
    from retraining_project import rows

    check = drifted.arrive(rows(100, 10))
    done = retraining.retrain(check, now=False)
    print(*done.lines(), sep="\n")
    print(done.markdown())
    print(drifted.git("log", "--stat", "--all"))
    print(drifted.git("diff", f"HEAD...{done.branch}", "--", "params.yaml"))
    print(drifted.git("status", "--short"))
    print(drifted.tags("2"))
    print((drifted.folder / "journal.jsonl").read_text())
    assert 0
