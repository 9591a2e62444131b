"""`tunetrail verify`: what it prints and the code that it ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import DONE, FAULT, GATE, MISUSE, app
from tasks.lineage import signing, store, verify
from tasks.lineage.verify import Finding, Report

GOOD = Finding("signature", True, "by 00, trusted as trusted_keys/ada.pem")
BAD = Finding("files", False, "changed: merged/config.json")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)


def asked(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["verify", *arguments], prog_name="tunetrail")


def finds(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    def answer(name: str, version: str) -> Report:
        assert (name, version) == ("shipments-candidates", "challenger")
        return Report(name, 3, "1" * 64, "0" * 64, list(findings))

    monkeypatch.setattr(verify, "verify", answer)


def test_a_line_a_check_and_what_it_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, GOOD)
    shown = asked("shipments-candidates@challenger")
    assert shown.exit_code == DONE
    assert shown.output.splitlines() == [
        "signature   holds  by 00, trusted as trusted_keys/ada.pem",
        "shipments-candidates@3 is what was signed, and says what its files say.",
    ]


def test_one_failure_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, GOOD, BAD)
    shown = asked("shipments-candidates@challenger")
    assert shown.exit_code == GATE
    assert shown.output.splitlines()[1:] == [
        "files       FAILS  changed: merged/config.json",
        "shipments-candidates@3 is not proven: 1 of 2 checks fails. Do not serve it; "
        "register it anew from its sources.",
    ]


def test_what_can_be_mended_is_not_registered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, GOOD, Finding("signature", False, "put the key there", mendable=True))
    last = asked("shipments-candidates@challenger").output.splitlines()[-1]
    assert last.endswith("is not proven: 1 of 2 checks fails. Do not serve it; mend that.")


def test_a_program_reads_json(monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, GOOD, BAD)
    shown = asked("shipments-candidates@challenger", "--json")
    assert shown.exit_code == GATE
    told = json.loads(shown.output)
    assert (told["holds"], told["model"], told["number"]) == (False, "shipments-candidates", 3)
    assert told["findings"][1] == {
        "check": "files",
        "holds": False,
        "why": "changed: merged/config.json",
        "mendable": False,
    }


def test_what_names_no_version_is_misuse() -> None:
    shown = asked("shipments")
    assert shown.exit_code == MISUSE
    assert "'shipments' names no version; write NAME@VERSION" in shown.stderr


@pytest.mark.parametrize(
    "error", [store.Unreachable("MLflow at http://x does not answer"), signing.KeyProblem("a key")]
)
def test_what_the_environment_lacks_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(name: str, version: str) -> Report:
        raise error

    monkeypatch.setattr(verify, "verify", fails)
    shown = asked("shipments-candidates@1")
    assert shown.exit_code == FAULT
    assert str(error) in shown.stderr
