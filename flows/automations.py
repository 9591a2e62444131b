"""What follows from an event, as automations of Prefect: drift sets off a retraining, a flow run that
falls silent is marked crashed, people are told.  Made once, and changed when this file has changed;
one that was switched off in Prefect's pages stays off."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    RunDeployment,
    SendNotification,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from flows import events
from flows.pipeline import TAG
from tasks.lineage.stage import StageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE_SECONDS = 90
"""Three heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY, as flows/__init__.py sets it."""

RETRAIN = "retrain on drift"
CRASHED = "crashed without a heartbeat"

_TOLD = {
    events.DRIFT_FOUND: (
        "tell of drift",
        "{{ event.resource.name }}: what arrives has drifted",
        "{{ event.payload.reason }}\n\nCheck {{ event.payload.check }}",
    ),
    events.RETRAINING_SKIPPED: (
        "tell of a skipped retraining",
        "{{ event.resource.name }}: drift, and no retraining",
        "{{ event.payload.reason }}\n\nCheck {{ event.payload.check }}",
    ),
    events.RETRAINING_FAILED: (
        "tell of a retraining that failed",
        "{{ event.resource.name }}: the retraining failed",
        "{{ event.payload.reason }}\n\nCheck {{ event.payload.check }}",
    ),
    events.CANDIDATE_WAITS: (
        "tell of a candidate that waits",
        "{{ event.payload.candidate }} waits for reviewers",
        "Verdict: {{ event.payload.verdict }}\n\n{{ event.payload.reason }}\n\n"
        "`tunetrail promote {{ event.payload.candidate }}` shows all that speaks for it.",
    ),
}
"""Per event the automation's name, and subject and body of what is sent."""


_OURS = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
"""What Prefect says beside each event of a flow run with the tag."""


class NoBlock(StageError):
    """There is no notification block of that name."""


def wanted(
    model: str, deployments: Mapping[str, UUID], notification: UUID | None
) -> list[AutomationCore]:
    """The automations that there should be.

    Args:
        model: `register.name`, whose events count.
        deployments: by name.
        notification: the Prefect block that tells people; None to tell nobody.
    """
    made = [_crashed()]
    if retrain := deployments.get("retrain"):
        made.append(_retrain(model, retrain))
    if notification:
        made += [_tell(model, event, notification) for event in _TOLD]
    return made


def apply(
    client: SyncPrefectClient, model: str, deployments: Mapping[str, UUID], notify: str | None
) -> list[str]:
    """Make, change or remove what is not as wanted.

    Args:
        notify: type and name of a notification block, as slack-webhook/team.

    Returns:
        What was done, a line each.

    Raises:
        NoBlock: when there is no block `notify`.
    """
    block = _block(client, notify) if notify else None
    done = []
    names = {RETRAIN, CRASHED, *(name for name, _, _ in _TOLD.values())}
    for automation in wanted(model, deployments, block):
        names.discard(automation.name)
        there = client.read_automations_by_name(automation.name)
        if not there:
            client.create_automation(automation)
            done.append(f"automation {automation.name}: made")
            continue
        automation.enabled = there[0].enabled
        if _content(there[0]) != _content(automation):
            client.update_automation(there[0].id, automation)
            done.append(f"automation {automation.name}: changed")
    for name in sorted(names):
        for automation in client.read_automations_by_name(name):
            client.delete_automation(automation.id)
            done.append(f"automation {name}: removed")
    return done


def await_signs_of_life(client: SyncPrefectClient) -> int:
    """Have each flow run of ours that is called running, or about to, show a sign of life or be marked
    as crashed: of what was killed together with the server, or before its first heartbeat, none waits.
    Until then it would keep its place in a queue.

    Returns:
        How many there are.
    """
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        FlowRunFilterTags,
    )
    from prefect.events import Event, RelatedResource, Resource

    unfinished = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    only = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=unfinished)),
        tags=FlowRunFilterTags(all_=[TAG]),
    )
    runs = client.read_flow_runs(flow_run_filter=only)
    heard = [
        Event(
            event=HEARTBEAT,
            resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run.id}"}),
            related=[RelatedResource(_OURS)],
        )
        for run in runs
    ]
    if heard:
        content = [event.model_dump(mode="json") for event in heard]
        client.request("POST", "/events", json=content).raise_for_status()
    return len(heard)


def _content(automation: AutomationCore) -> object:
    return AutomationCore(**automation.model_dump(exclude={"id"})).model_dump(
        mode="json", exclude={"trigger": {"id"}}
    )


def _block(client: SyncPrefectClient, notify: str) -> UUID:
    kind, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise NoBlock(
            f"retraining.notify is {notify}, and Prefect has no such block; make it on the page "
            "Blocks, or take null for none"
        ) from error


def _of(model: str) -> dict[str, str | list[str]]:
    return {"prefect.resource.id": f"tunetrail.model.{model}"}


def _retrain(model: str, deployment: UUID) -> AutomationCore:
    check = {"__prefect_kind": "jinja", "template": "{{ event.payload.check }}"}
    return AutomationCore(
        name=RETRAIN,
        description="Drift was found: make a candidate from what arrived. Nothing is promoted.",
        trigger=EventTrigger(
            expect={events.DRIFT_FOUND}, match=_of(model), posture=Posture.Reactive
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment,
                parameters={"check": check},
                job_variables=None,
            )
        ],
    )


def _crashed() -> AutomationCore:
    ended = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")}
    return AutomationCore(
        name=CRASHED,
        description="A flow run that says nothing any more was killed, with its machine or without.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ended},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={**_OURS},  # Prefect's own pulse, as others have it, is 180 seconds
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"no sign of life for {SILENCE_SECONDS} s; run it again, it goes on from there",
            )
        ],
    )


def _tell(model: str, event: str, block: UUID) -> AutomationCore:
    name, subject, body = _TOLD[event]
    return AutomationCore(
        name=name,
        description=f"Sends what {event} says",
        trigger=EventTrigger(
            expect={event},
            match=_of(model) | {events.TOLD: events.FIRST},
            posture=Posture.Reactive,
        ),
        actions=[SendNotification(block_document_id=block, subject=subject, body=body)],
    )
