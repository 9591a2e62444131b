"""Candidates whose answers can be compared: on every row of their test the final one is right, and
base is wrong.

A plugin; it needs `work_trees` and `promotable`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = 12
SLY = '</script><script>document.title = "owned"</script><img src=x onerror="document.title=1">'


def write_predictions(rows: int = ROWS) -> None:
    """As evaluate writes them; the first answer of base tries to be more than text."""
    path = Path("models/report/predictions.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for at in range(rows):
            row = {
                "id": f"{at:02d}",
                "source": "s.jsonl",
                "split": "test",
                "prompt": [{"role": "user", "content": f"Where is parcel {at}?"}],
                "expected": f"right {at}",
                "answers": {
                    "base": SLY if at == 0 else f"wrong {at}",
                    "sft": f"right {at}",
                    "dpo": f"right {at}",
                },
            }
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def candidate(team: Any) -> str:
    """A version whose answers can be compared, seen by the reviewer."""
    write_predictions()
    return str(team.candidate())
