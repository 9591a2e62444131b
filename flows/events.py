"""What drift and retraining tell Prefect; flows/automations.py has what follows from it."""

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

AGAIN = "tunetrail.again"
"""A label of the resource: true where the same was told before, as each check does that finds the same
drift. An automation may answer it; people need it once."""


def tell(event: str, model: str, payload: Mapping[str, Any], again: bool = False) -> None:
    """Emit an event of a model, where a Prefect API is configured.

    It ends no run that has done its work: what cannot be told is said on the console.

    Args:
        model: `register.name`.
        again: whether the same was told before.
    """
    if not PREFECT_API_URL.value():
        return
    resource = {
        "prefect.resource.id": f"tunetrail.model.{model}",
        "prefect.resource.name": model,
        AGAIN: str(again).lower(),
    }
    try:
        emit_event(event, resource, payload=dict(payload))
    except Exception as error:
        say("prefect", f"{event} is not told ({error}); see that the server answers")
