"""Promotion as a Prefect flow: it shows the evidence, waits for a reviewer's form, and does as told.

Prefect's open-source server knows no users, so the form is convenience.  Who may promote is decided
by MLflow's accounts, and whose promotions count by the key of the process that runs this flow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas import State
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from tasks.lineage import promotion
from tasks.lineage.stage import FAULT, StageError
from tasks.params import load

WAIT_SECONDS = 7 * 24 * 3600
"""How long the form waits for a reviewer."""


class NoServer(StageError):
    """Nobody can see a form."""

    exit_code = FAULT


class PromotionDecision(RunInput):
    """What the form asks."""

    approve: bool
    reviewer: str
    comment: str


@flow(name="promote", description="A candidate becomes the champion", persist_result=False)
def promote(candidate: str) -> State[Any]:
    """Show the evidence for NAME-candidates@VERSION and wait for a decision on it.

    Raises:
        Refused: when the reviewer approves, and the evidence does not hold.
    """
    settings = load(Path("params.yaml")).promote
    case, objections = promotion.examine(candidate, None, settings)
    page = case.markdown() + "".join(f"\n- against it: {line}" for line in objections)
    create_markdown_artifact(key="evidence", markdown=page, description=case.reference)
    print(f"{case.reference} waits for a reviewer: Resume at {flow_run.ui_url}", flush=True)
    decision = pause_flow_run(
        wait_for_input=PromotionDecision.with_initial_data(description=page, comment=""),
        timeout=WAIT_SECONDS,
    )
    if not decision.approve:
        promotion.refuse(case.reference, decision.reviewer, decision.comment)
        said = f"{decision.reviewer} refused {case.reference}: {decision.comment}"
        return Completed(name="Refused", message=said)
    done = promotion.promote(case.reference, decision.reviewer, decision.comment, settings)
    return Completed(message=done.line)


def by_form(candidate: str) -> str:
    """Wait until a reviewer has decided on a candidate in Prefect's pages.

    Returns:
        What came of it, in a line.

    Raises:
        NoServer: when no Prefect server is named.
        Refused: as `promote`.
    """
    if not PREFECT_API_URL.value():
        raise NoServer(
            "a form needs a Prefect server: `prefect server start` in another terminal, and "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api` in this one"
        )
    try:
        state = promote(candidate, return_state=True)
    except httpx.TransportError as error:
        raise NoServer(
            f"Prefect at {PREFECT_API_URL.value()} does not answer ({error}); the champion is what it "
            "was. Start it, and do it again"
        ) from error
    state.result()  # raises what was refused
    return str(state.message)
