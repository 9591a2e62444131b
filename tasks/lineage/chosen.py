"""What a stage chose by the machine that it runs on, where params.yaml says `auto`.

It belongs into the stage's record, since it decides bits as params do.  So it must be the same each time
on such a machine: no free bytes, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_noted: dict[str, Any] = {}


def note(values: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Keep the resolved values, and the facts of the machine that they follow from."""
    _noted.update(resolved=dict(values), machine=dict(machine))


def noted() -> dict[str, Any]:
    """What the running stage chose: `resolved` and `machine`, or nothing."""
    return dict(_noted)


def forget() -> None:
    """A stage begins."""
    _noted.clear()
