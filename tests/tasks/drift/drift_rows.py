"""Rows of the example desk, as stage validate lets them through. No plugin: functions alone."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from data.generator import arrivals as examples
from tasks.drift import arrivals
from tasks.drift.columns import Side
from tasks.params import Params, load

ROOT = Path(__file__).resolve().parents[3]
LIKE = "shipments.jsonl"


@cache
def params() -> Params:
    return load(ROOT / "params.yaml")


@cache
def side(shift: str, rows: int, seed: int) -> Side:
    """What is read of a file of example arrivals."""
    with tempfile.TemporaryDirectory() as folder:
        incoming = Path(folder) / "incoming"
        incoming.mkdir()
        (incoming / f"{shift}-{seed}.jsonl").write_bytes(examples.content(shift, rows, seed))
        found = arrivals.find(incoming, params().drift, set(), wait=lambda seconds: None)
        return arrivals.read(found, params(), Path(folder) / "read").read[LIKE].side()


def chat(number: int, prompt: str, answer: str, group: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    about = {"id": f"{number}", "source": LIKE, "role": "train", "time": None, "group": group}
    return {**about, "messages": turns}
