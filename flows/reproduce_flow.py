"""`tunetrail reproduce` as a Prefect flow, so that it can be scheduled and its answer is seen there."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from flows import reproduce as reproduction
from flows.cli import TOLERANCE


@flow(
    name="reproduce",
    description="Build a version anew, and compare",
    persist_result=False,
    log_prints=True,
)
def reproduce(
    version: str, any_environment: bool = False, tolerance: float = TOLERANCE
) -> State[Any]:
    """Build NAME@VERSION anew, compare, and note the answer on it; fails where it is different.

    Raises:
        store.Unreachable, StageError: as `flows.reproduce.reproduce`.
    """
    done = reproduction.reproduce(version, False, None, any_environment, tolerance, print)
    said = f"{version} is {done.answer}"
    lines = [f"- {line.strip()}" for line in done.lines()]
    create_markdown_artifact(key="reproduction", markdown="\n".join([f"# {said}", "", *lines]))
    return Failed(message=said) if done.exit_code else Completed(message=said)
