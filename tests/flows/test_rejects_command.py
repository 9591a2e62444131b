"""`tunetrail rejects`: which rows to mend."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import rejects
from flows.cli import DONE, FAULT, MISUSE, app

SHOWN_ROW = {
    "source": "a.jsonl",
    "file": "a.jsonl",
    "line": 13,
    "byte": 2859,
    "id": "A-7",
    "reason": "duplicate_id",
    "detail": "the id comes a second time",
    "snippet": '{"id":"A-7"…',
}


def tunetrail(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["rejects", *arguments], prog_name="tunetrail")


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({**SHOWN_ROW, **row}) + "\n" for row in rows))


@pytest.fixture
def listed(project: Path) -> Path:
    """Rejects of three stages, the last of which failed."""
    write(
        rejects.KEPT / "ingest.jsonl",
        {},
        {"id": None, "line": 20, "byte": 4000, "reason": "nul", "detail": "holds NUL"},
        {"id": None, "line": 21, "byte": 4100, "reason": "nul", "detail": "holds NUL"},
    )
    later = {"file": None, "line": None, "byte": None, "reason": "leak", "detail": "held out"}
    write(rejects.KEPT / "format.jsonl", later)
    write(rejects.KEPT / "validate.jsonl")
    write(rejects.FAILED / "format.jsonl", {**later, "id": "B-1", "source": "b.csv"})
    return project


def test_totals_then_rows(listed: Path) -> None:
    shown = tunetrail()
    assert shown.exit_code == DONE
    assert shown.output == (
        "4 rows rejected\n"
        "The last run of format failed; these are the rows that it rejected.\n"
        "\n"
        "stage   source   reason        rows\n"
        "ingest  a.jsonl  nul              2\n"
        "ingest  a.jsonl  duplicate_id     1\n"
        "format  b.csv    leak             1\n"
        "\n"
        "ingest:\n"
        "  a.jsonl:13 (byte 2859) A-7  duplicate_id: the id comes a second time\n"
        '      {"id":"A-7"…\n'
        "  a.jsonl:20 (byte 4000)  nul: holds NUL\n"
        '      {"id":"A-7"…\n'
        "  a.jsonl:21 (byte 4100)  nul: holds NUL\n"
        '      {"id":"A-7"…\n'
        "\n"
        "format:\n"
        "  b.csv B-1  leak: held out\n"
        '      {"id":"A-7"…\n'
    )


def test_lists_behind_a_failed_stage_are_of_an_earlier_run(listed: Path) -> None:
    write(rejects.FAILED / "ingest.jsonl", {"reason": "nul", "detail": "holds NUL"})
    shown = tunetrail()
    assert shown.exit_code == DONE
    assert shown.output == (
        "1 row rejected\n"
        "The last run of ingest failed; these are the rows that it rejected.\n"
        "The lists of validate, format are of an earlier run and left out: ingest comes before.\n"
        "\n"
        "stage   source   reason  rows\n"
        "ingest  a.jsonl  nul        1\n"
        "\n"
        "ingest:\n"
        "  a.jsonl:13 (byte 2859) A-7  nul: holds NUL\n"
        '      {"id":"A-7"…\n'
    )


def test_a_choice_of_an_earlier_run_is_told(listed: Path) -> None:
    write(rejects.FAILED / "ingest.jsonl", {})
    shown = tunetrail("--stage", "format")
    assert (shown.exit_code, shown.output) == (
        DONE,
        "No rejected row has --stage format.\n"
        "There are rejects of the stages ingest; of the sources a.jsonl; "
        "for the reasons duplicate_id.\n"
        "The lists of validate, format are of an earlier run and left out: ingest comes before.\n",
    )


def test_a_choice(listed: Path) -> None:
    shown = tunetrail("--stage", "ingest", "--reason", "nul", "--source", "a.jsonl").output
    assert shown.startswith("2 rows rejected\n\nstage ")
    assert "duplicate_id" not in shown
    assert "format" not in shown


def test_a_limit_counts_all(listed: Path) -> None:
    shown = tunetrail("--limit", "1").output
    assert shown.startswith("4 rows rejected\n")
    assert "ingest  a.jsonl  nul              2\n" in shown
    assert "a.jsonl:20" not in shown
    assert "The first 1 of 4. --limit N shows more, --csv FILE writes all of them" in shown


def test_a_csv_file_has_all_that_fit(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(listed / "data")
    shown = tunetrail("--stage", "ingest", "--limit", "0", "--csv", "mend.csv")
    assert shown.output.endswith(f"\nWrote 3 rows to {listed / 'data' / 'mend.csv'}.\n")
    with (listed / "data" / "mend.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"stage": "ingest", **{key: str(of) for key, of in SHOWN_ROW.items()}}
    assert [row["id"] for row in rows] == ["A-7", "", ""]


def test_a_cell_runs_in_no_spreadsheet(listed: Path) -> None:
    write(rejects.KEPT / "ingest.jsonl", {"snippet": "=cmd|'/c calc'!A1", "id": "-1"})
    tunetrail("--csv", "mend.csv")
    with Path("mend.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["snippet"], row["id"], row["line"]) == ("'=cmd|'/c calc'!A1", "'-1", "13")


def test_a_terminal_obeys_no_row(listed: Path) -> None:
    write(rejects.KEPT / "ingest.jsonl", {"id": "\x1b[2J", "snippet": "a\nb\u202e"})
    shown = tunetrail().output
    assert "\x1b" not in shown
    assert "a\ufffdb\ufffd\n" in shown


def test_nothing_fits(listed: Path) -> None:
    shown = tunetrail("--reason", "nil", "--stage", "ingest")
    assert (shown.exit_code, shown.output) == (
        DONE,
        "No rejected row has --stage ingest --reason nil.\n"
        "There are rejects of the stages ingest, format; of the sources a.jsonl, b.csv; "
        "for the reasons duplicate_id, nul, leak.\n",
    )


def test_no_row_was_rejected(project: Path) -> None:
    write(rejects.KEPT / "ingest.jsonl")
    shown = tunetrail()
    assert (shown.exit_code, shown.output) == (
        DONE,
        "No row was rejected: every row that was read went on.\n",
    )


def test_nothing_has_run(project: Path) -> None:
    shown = tunetrail()
    assert (shown.exit_code, shown.output) == (
        DONE,
        "No stage has looked at a row yet. `tunetrail run format` runs those that do.\n",
    )


def test_a_list_that_was_edited(project: Path) -> None:
    rejects.KEPT.mkdir(parents=True)
    (rejects.KEPT / "ingest.jsonl").write_text('{"source": "a.jsonl"}\n')
    shown = tunetrail()
    assert shown.exit_code == FAULT
    assert shown.stderr == (
        "data/rejected/ingest.jsonl:1 is no entry of a list of rejects; remove the file and run "
        "`tunetrail run ingest --force`\n"
    )


def test_a_csv_file_that_cannot_be_written(listed: Path) -> None:
    shown = tunetrail("--csv", "nowhere/mend.csv")
    assert shown.exit_code == MISUSE
    assert "nowhere/mend.csv: No such file or directory; choose another file\n" in shown.stderr
