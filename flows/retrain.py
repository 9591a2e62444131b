"""Retraining as a Prefect flow: what an automation starts when drift is found.

The walk of the stages is a flow of its own below it, so that each shows with its state and log.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from flows import retraining


@flow(
    name="retrain",
    description="What arrived becomes a candidate that waits for reviewers",
    flow_run_name="retrain-{check}",
    persist_result=False,
)
def retrain(check: str) -> State[Any]:
    """Retrain on what a drift check found, if the policy lets it; nothing is promoted.

    Raises:
        StageError: when a fault of the machine ended it; run again it goes on.
    """
    done = retraining.retrain(check, now=False)
    create_markdown_artifact(key="retraining", markdown=done.markdown(), description=done.check)
    if done.outcome == "skipped":
        return Completed(name="Skipped", message=done.why)
    if done.outcome == "failed":
        return Failed(message=done.headline())
    return Completed(message=done.headline())
