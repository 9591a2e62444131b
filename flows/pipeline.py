"""The Prefect flow that walks dvc.yaml: a task run a stage, in the order of its needs.

DVC decides what has to run; Prefect shows it, tries again and schedules it.  Without Prefect the
stages run all the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from flows import dvc_dag, prefect_server, results
from flows.dvc_dag import Outcome, Stage, StageFailed
from tasks.lineage.stage import FAULT

TAG = "tunetrail"
"""Of each flow run of ours, as prefect.yaml has it: a server can serve others, too."""

RETRY_DELAY_SECONDS = 5.0
HAND_OVER_SECONDS = 5.0

_NOT_RUN = {
    "cached": ("Cached", "unchanged: code, data and values are those of dvc.lock"),
    "restored": ("Restored", "the outputs of an earlier run with the same code, data and values"),
}


class Walk:
    """One pass over the DAG. It knows how far it came, so that it can go on without Prefect."""

    def __init__(self, target: str | None, force: bool) -> None:
        """`force` runs the target's command though nothing changed, without a target everyone's."""
        self.stages = dvc_dag.plan(target)
        self.outcomes: dict[str, Outcome] = {}
        self.failure: Exception | None = None
        self.untold: str | None = None
        """The Prefect server that was named and does not know how this ended."""
        self._forced = {stage.name for stage in self.stages if target in (None, stage.name)}
        if not force:
            self._forced.clear()

    def left(self) -> list[Stage]:
        """The stages that are not up to date yet, in order."""
        return [stage for stage in self.stages if stage.name not in self.outcomes]

    def step(self, stage: Stage) -> Outcome:
        """Bring a stage up to date, and say so."""
        self.failure = None
        started = time.monotonic()
        try:
            outcome = dvc_dag.reproduce(
                stage.name,
                force=stage.name in self._forced,
                on_start=lambda: say(stage.name, stage.desc),
            )
        except Exception as error:
            self.failure = error
            raise
        self.outcomes[stage.name] = outcome
        seconds = time.monotonic() - started
        said = {"cached": "unchanged", "restored": "restored from the cache of earlier runs"}
        say(stage.name, said.get(outcome, f"done in {seconds:.1f} s"))
        return outcome

    def writes(self, path: str) -> bool:
        """Whether a stage of this walk writes the path."""
        return any(path in stage.outs for stage in self.stages)


def run(target: str | None, force: bool) -> Walk:
    """Walk the DAG as a Prefect flow, or without Prefect where its API does not answer.

    Raises:
        DagError: before any stage.
        StageFailed: the stages after it have not run.
    """
    walk = Walk(target, force)
    lent = _walk_of_run.set(walk)
    try:
        with _prefect_api(), tags(TAG):
            pipeline(target, force)
    except Exception as error:
        if walk.failure is not None:
            raise walk.failure from None
        say("prefect", f"its API does not answer ({error}); the stages run all the same")
        walk.untold = PREFECT_API_URL.value()
        for stage in walk.left():
            walk.step(stage)
    finally:
        _walk_of_run.reset(lent)
    return walk


@contextmanager
def _prefect_api() -> Iterator[None]:
    """Make sure of an API that answers: the one that is configured, else one for this run."""
    with ExitStack() as stack:
        if not PREFECT_API_URL.value():
            say("prefect", "starting a server for this run; `prefect server start` keeps one up")
            url = stack.enter_context(prefect_server.serving())
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
            stack.callback(_hand_over)
        with get_client(sync_client=True) as client:
            if problem := client.api_healthcheck():
                raise problem
        yield


def _hand_over() -> None:
    """Prefect sends states and logs from threads of its own; wait until a server that is about to
    stop has them."""
    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=HAND_OVER_SECONDS)


def say(stage: str, text: str) -> None:
    """A line on the console, in the form that the stages' own lines have."""
    print(f"{stage:<9}{text}", file=sys.stderr, flush=True)


_walk_of_run: ContextVar[Walk | None] = ContextVar("walk_of_run", default=None)
"""What `run` lends to the flow; a flow that Prefect starts makes its own."""


@flow(name="pipeline", description="The stages of dvc.yaml", persist_result=False)
def pipeline(target: str | None = None, force: bool = False) -> None:
    """Bring `target` and what it needs up to date; without a target, every stage."""
    walk = _walk_of_run.get() or Walk(target, force)
    states: dict[str, State[Any]] = {}
    for stage in walk.left():
        needed = [states[name] for name in stage.needs]
        states[stage.name] = _as_task(walk, stage)(return_state=True, wait_for=needed)
        states[stage.name].result()  # raises what the stage raised, which ends the flow
    if walk.writes(str(results.METRICS)):
        _publish()


def _as_task(walk: Walk, stage: Stage) -> Any:
    @task(
        name=stage.name,
        task_run_name=stage.name,
        description=stage.desc,
        retries=stage.retries,
        retry_delay_seconds=RETRY_DELAY_SECONDS,
        retry_condition_fn=_can_pass_later,
        cache_policy=NO_CACHE,  # DVC knows better what is unchanged
        persist_result=False,
    )
    def bring_up_to_date() -> State[Any] | None:
        outcome = walk.step(stage)
        if outcome == "ran":
            return None
        name, message = _NOT_RUN[outcome]
        return Completed(name=name, message=message)

    return bring_up_to_date


def _can_pass_later(task: Any, task_run: Any, state: State[Any]) -> bool:
    """A fault of the environment can pass; bad input and a gate's no stay what they are."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.exit_code == FAULT


def _publish() -> None:
    """Show the result in Prefect. A result that cannot be shown there is a result all the same."""
    from prefect.artifacts import (
        create_link_artifact,
        create_markdown_artifact,
        create_table_artifact,
    )

    try:
        result = results.read()
        run = results.mlflow_run(str(results.VERDICT))
        links = _links(run)
        for key, (text, address) in links.items():
            create_link_artifact(key=key, link=address, link_text=text)
        create_table_artifact(key="results", table=result.rows(), description="value [low, high]")
        shown = result.markdown(dict(links.values()))
        create_markdown_artifact(key="verdict", markdown=shown)
    except Exception as error:
        say("prefect", f"the result is not shown there ({error}); `tunetrail report` shows it")


def _links(run: str | None) -> dict[str, tuple[str, str]]:
    """Where report and model card are: what a link says and its address, by key.

    Args:
        run: the page of the evaluation's run in MLflow.
    """
    found = {}
    for key, path, text in (
        ("report", results.REPORT, "The report"),
        ("model-card", results.CARD, "The model card"),
    ):
        if path.is_file():
            found[key] = (f"{text}, on this machine", path.resolve().as_uri())
        if run is not None:
            address = f"{run}/artifacts/report/{path.name}"
            found[f"{key}-in-mlflow"] = (f"{text} in MLflow, with costs", address)
    if run is not None:
        found["mlflow-run"] = ("The evaluation in MLflow", run)
    return found
