"""Promotion from the command line, and as a Prefect flow with a form."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows import promote as promotion_flow
from flows import reproduce as reproduction
from flows.cli import DONE, FAULT, GATE, MISUSE, app
from flows.promote import PromotionDecision
from flows.reproduce import Reproduction
from tasks.lineage import machine, signing
from tasks.lineage.evidence import REPRODUCTIONS
from tasks.lineage.review import Refused

pytest_plugins = ("work_trees", "promotable")

NAME = "shipments"
GRACE = "grace@example.com"


def tunetrail(*arguments: str, answer: str = "") -> Any:
    return CliRunner().invoke(app, list(arguments), input=answer, prog_name="tunetrail")


class TestCommands:
    def test_a_candidate_is_promoted_rolled_back_and_audited(self, team) -> None:
        first, second = team.candidate(), team.candidate()
        team.patch.setenv("GIT_CONFIG_VALUE_0", GRACE)
        shown = tunetrail("promote", first, "--comment", "good on customs", answer="y\n")
        assert shown.exit_code == DONE, shown.output
        assert (
            f"{first}, to be promoted to {NAME} by {GRACE}:\n  holds  signature: " in shown.output
        )
        assert "  holds  gate test/exact_match: 0.9 is at least 0.8\n" in shown.output
        assert "  holds  reproduced: identical at 2026-11-22T" in shown.output
        assert " by ada@example.com, its author\n" in shown.output
        assert f"{first} is now the champion: version 1 of {NAME}\n" in shown.output
        assert shown.output.endswith(f"Next: `tunetrail audit {NAME}` shows who promoted what\n")

        assert tunetrail("promote", first, "--yes").output.count("was already the champion") == 1
        team.reproduce(second)
        assert tunetrail("promote", second, "--yes", "--reviewer", "Grace").exit_code == DONE
        back = tunetrail("rollback", NAME, "--comment", "it misroutes")
        assert back.exit_code == DONE
        assert back.output.startswith(f"{first} is now the champion: version 1 of {NAME}\n")

        record = tunetrail("audit", NAME)
        assert record.exit_code == DONE
        lines = [line.split("Z  ")[-1] for line in record.output.splitlines()]
        assert lines == [
            f"{GRACE}  {first} became version 1: good on customs",
            f"Grace  {second} became version 2, from version 1",
            f"{GRACE}  back to version 1 ({first}), from version 2: it misroutes",
            "The record holds; version 1 is the champion.",
        ]
        team.client.set_registered_model_tag(NAME, "audit.head", "0" * 64)
        record = tunetrail("audit", NAME)
        assert record.exit_code == GATE
        assert "The record does not hold:\nthe newest entry was 000000000000" in record.stderr

    def test_no_is_an_answer(self, team) -> None:
        reference = team.candidate()
        shown = tunetrail("promote", reference, "--reviewer", GRACE, answer="n\n")
        assert (shown.exit_code, shown.stderr) == (GATE, "Nothing was changed.\n")
        assert team.record().entries == []
        shown = tunetrail("audit", NAME)
        assert shown.output == (
            f"{NAME} has no champion yet. Next: `tunetrail promote {NAME}-candidates@VERSION`\n"
        )

    def test_refusals(self, team) -> None:
        reference = team.candidate()
        shown = tunetrail("promote", reference)  # git knows the author alone here
        assert shown.exit_code == GATE
        assert shown.stderr == (
            f"{reference} is not promoted: 1 reason\n"
            "  ada@example.com is its author (ada@example.com); somebody else must review it\n"
        )
        assert tunetrail("promote", f"{NAME}-candidates@9", "--yes").exit_code == MISUSE
        shown = tunetrail("rollback", NAME, "--comment", "x")
        assert shown.exit_code == GATE
        assert "there is no champion before this one" in shown.stderr
        Path("params.yaml").write_text("promote: {votes: many}\n")
        assert tunetrail("promote", reference).exit_code == MISUSE

    def test_a_key_comes_to_be_trusted(self, team) -> None:
        team.work_as("newcomer")
        shown = tunetrail("key")
        private = signing.own_key()
        assert shown.output.startswith(
            f"Your key is {signing.fingerprint(private)}, in {private}\n"
        )
        copy = f"cp {signing.public_half(private)} trusted_keys/ada.pem"
        assert f"`mkdir -p trusted_keys && {copy}`, and commit that" in shown.output
        shutil.copyfile(signing.public_half(private), "trusted_keys/ada.pem")
        again = tunetrail("key")
        assert again.output.endswith("\nThis repository trusts it as trusted_keys/ada.pem.\n")
        assert again.exit_code == DONE

    def test_mlflow_out_of_reach(self, team, closed_port: str) -> None:
        team.patch.setenv("MLFLOW_TRACKING_URI", closed_port)
        for command in (
            ("promote", "a-candidates@1"),
            ("audit", "a"),
            ("rollback", "a", "--comment", "x"),
        ):
            shown = tunetrail(*command)
            assert shown.exit_code == FAULT
            assert "start it, or name another in MLFLOW_TRACKING_URI" in shown.stderr


def test_what_reproduce_writes_is_what_promotion_reads(team) -> None:
    reference = team.candidate()
    (kept,) = Path("mlruns").glob(f"*/*/artifacts/{REPRODUCTIONS}/*.json")
    kept.unlink()
    recorded = reproduction.read(team.client, reference)
    facts = {**machine.facts(), "switches": {}}
    reproduction.write(team.client, recorded, Reproduction("identical", 0.0, machine=facts))
    assert team.promote(reference).made


class TestFlow:
    """The decision is given at the edge; what Prefect does with it, the test below shows."""

    @pytest.fixture
    def decide(self, team, monkeypatch: pytest.MonkeyPatch) -> Any:
        pages: list[str] = []

        def run(reference: str, approve: bool, reviewer: str = GRACE) -> Any:
            decision = PromotionDecision(approve=approve, reviewer=reviewer, comment="as seen")
            monkeypatch.setattr(promotion_flow, "pause_flow_run", lambda **_: decision)
            monkeypatch.setattr(
                promotion_flow,
                "create_markdown_artifact",
                lambda markdown, **_: pages.append(markdown),
            )
            return promotion_flow.promote.fn(reference), pages[-1]

        return run

    def test_approved(self, team, decide) -> None:
        reference = team.candidate()
        state, page = decide(reference, True)
        assert state.message == f"{reference} is now the champion: version 1 of {NAME}"
        assert page.startswith(f"## {reference}\n\nBy ada@example.com, ")
        assert "| holds | gate test/exact_match | 0.9 is at least 0.8 |\n" in page
        assert "against it" not in page

    def test_refused_by_the_reviewer(self, team, decide) -> None:
        reference = team.candidate()
        state, _ = decide(reference, False)
        assert (state.name, state.message) == (
            "Refused",
            f"{GRACE} refused {reference}: as seen",
        )
        (entry,) = team.record().entries
        assert (entry.action, entry.candidate) == ("refuse", reference)
        assert "champion" not in team.aliases()

    def test_refused_for_want_of_evidence(self, team, decide) -> None:
        reference = team.candidate()
        team.reproduce(reference, answer="different")
        with pytest.raises(Refused, match="reproduce answered different"):
            decide(reference, True)
        with pytest.raises(Refused, match="is its author"):
            decide(reference, True, reviewer="ada")


def test_without_a_server_there_is_no_form(team) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):  # other tests share a server
        shown = tunetrail("promote", f"{NAME}-candidates@1", "--form")
    assert shown.exit_code == FAULT
    assert shown.stderr.startswith("a form needs a Prefect server: `prefect server start` in anoth")

    def go_away(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("refused")

    team.patch.setattr(promotion_flow, "promote", go_away)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        shown = tunetrail("promote", f"{NAME}-candidates@1", "--form")
    assert shown.exit_code == FAULT
    assert "does not answer (refused); the champion is what it was" in shown.stderr


@pytest.mark.usefixtures("prefect_api")
def test_a_form_of_prefect_decides(team) -> None:
    """The run waits; a reviewer sees the evidence, fills in the form, and the run goes on."""
    from prefect.client.orchestration import get_client

    reference = team.candidate()
    seen: list[Any] = []

    def review() -> None:
        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                paused = [run for run in client.read_flow_runs() if run.state_name == "Paused"]
                if paused:
                    kept = client.read_artifacts()  # of every test that shares the server
                    seen.extend(one for one in kept if one.flow_run_id == paused[0].id)
                    form = {"approve": True, "reviewer": GRACE, "comment": "by the form"}
                    client.resume_flow_run(paused[0].id, run_input=form)
                    return
                time.sleep(0.2)

    reviewer = threading.Thread(target=review)
    reviewer.start()
    shown = tunetrail("promote", reference, "--form")
    reviewer.join()
    assert shown.output.startswith(f"{reference} waits for a reviewer: Resume at http")
    assert shown.output.endswith(f"{reference} is now the champion: version 1 of {NAME}\n")
    assert [artifact.key for artifact in seen] == ["evidence"]
    assert "| holds | signature |" in seen[0].data
    champion = team.record().champion
    assert (champion.candidate, champion.document["comment"]) == (reference, "by the form")
    with get_client(sync_client=True) as client:
        states = {run.state.message for run in client.read_flow_runs()}
    assert f"{reference} is now the champion: version 1 of {NAME}" in states
