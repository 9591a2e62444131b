"""What drift and retraining tell Prefect. Whoever is to be told of it is told by an automation."""

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

TOLD = "tunetrail.told"
FIRST, AGAIN = "first", "again"
"""The label TOLD of an event's resource: a check that is made every hour says the same every hour,
which must set off what it sets off, and is news to people once."""


def resource(model: str, again: bool) -> dict[str, str]:
    """What an event is about.

    Args:
        model: `register.name`.
    """
    return {
        "prefect.resource.id": f"tunetrail.model.{model}",
        "prefect.resource.name": model,
        TOLD: AGAIN if again else FIRST,
    }


def tell(event: str, model: str, payload: Mapping[str, Any], again: bool) -> None:
    """Emit an event of a model, where a Prefect API is configured.

    It does not end a run that has done its work: what cannot be told is said on the console.
    """
    if not PREFECT_API_URL.value():
        return
    try:
        emit_event(event, resource(model, again), payload=dict(payload))
    except Exception as error:
        say("prefect", f"{event} is not told ({error}); see that the server answers")
