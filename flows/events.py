"""What drift and retraining tell Prefect, and whoever is to be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from flows.pipeline import say

DRIFT_FOUND = "tunetrail.drift.found"
RETRAINING_SKIPPED = "tunetrail.retraining.skipped"
RETRAINING_FAILED = "tunetrail.retraining.failed"
CANDIDATE_WAITS = "tunetrail.candidate.waits"


def tell(event: str, model: str, payload: Mapping[str, Any], notify: str | None) -> None:
    """Emit an event of a model, where a Prefect API is configured, and notify whom params.yaml names.

    Neither ends a run that has done its work: what cannot be told is said on the console.

    Args:
        model: `register.name`.
        notify: a notification block, as slack-webhook/team.
    """
    if not PREFECT_API_URL.value():
        return
    resource = {"prefect.resource.id": f"tunetrail.model.{model}", "prefect.resource.name": model}
    try:
        emit_event(event, resource, payload=dict(payload))
        if notify:
            _block(notify).notify(_body(payload), subject=f"{model}: {event}")
    except Exception as error:  # of Prefect, or of whoever is to be notified
        say("prefect", f"{event} is not told ({error}); see that the server and {notify} answer")


def _block(name: str) -> Any:
    """A notification block. Called without an event loop, its `notify` returns when it is done."""
    from prefect.blocks.core import Block

    return Block.load(name)


def _body(payload: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in payload.items())
