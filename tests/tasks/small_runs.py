"""Formatted data of a handful of rows, settings for a second's training, and what they train.

A plugin, for the tests of the training stages and their rooms that name it.  They import it before
pytest does, and it holds no assert: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.params import Compute, Cpt, Dpo, Params, Sft

ANSWERS = (
    '{"category":"delivery_delay","eta":"1-2d"}',
    '{"category":"customs_hold","eta":"unknown"}',
)
TROUBLE = ("stuck in traffic", "held by customs", "late, it rains", "waiting for an invoice")


@dataclass(frozen=True)
class Trained:
    """What a training stage wrote and returned."""

    out: Path
    curve: Path
    metrics: dict[str, Any]


def chats(count: int, first: int = 0) -> list[dict[str, Any]]:
    rows = []
    for number in range(first, first + count):
        text = f"Message: truck {number} is {TROUBLE[number % len(TROUBLE)]}\nLabel:"
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": ANSWERS[number % 2]},
        ]
        rows.append({"id": f"{number}", "source": "shipments", "messages": messages})
    return rows


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "source": "preferences",
            "prompt": row["messages"][:-1],
            "chosen": row["messages"][-1]["content"],
            "rejected": '{"category":"lost","eta":"soon"}, I am sure',
        }
        for row in chats(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def write_formatted(folder: Path, model: Path) -> None:
    """What `format` hands to the training stages."""
    from tasks.model import chat

    folder.mkdir()
    write_rows(folder / "train.jsonl", chats(8))
    write_rows(folder / "validation.jsonl", chats(3, first=8))
    write_rows(folder / "test.jsonl", chats(4, first=20))
    write_rows(folder / "preferences.jsonl", pairs(8))
    write_rows(folder / "preferences_validation.jsonl", pairs(2))
    corpus = [
        {"id": f"{n}", "text": f"Truck {n} brings pallets to the harbour. " * 3} for n in range(8)
    ]
    write_rows(folder / "corpus.jsonl", corpus)
    agreed = json.dumps(chat.contract(chat.load_tokenizer(model)), ensure_ascii=False)
    (folder / "contract.json").write_text(agreed, encoding="utf-8")


@pytest.fixture(scope="session")
def formatted(tiny_model: Path, made_once: Callable[..., Path]) -> Path:
    """data/formatted for the tiny model; read it, do not change it."""
    made = made_once("data", lambda folder: write_formatted(folder / "formatted", tiny_model))
    return made / "formatted"


@pytest.fixture(scope="session")
def cpt_settings(params: Params) -> Cpt:
    return params.cpt.model_copy(update={"epochs": 1, "batch_size": 4, "block_tokens": 32})


@pytest.fixture(scope="session")
def sft_settings(params: Params) -> Sft:
    small = {"epochs": 2, "batch_size": 4, "lora_r": 4, "lora_alpha": 8}
    return params.sft.model_copy(update=small)


@pytest.fixture(scope="session")
def dpo_settings(params: Params) -> Dpo:
    return params.dpo.model_copy(update={"epochs": 2, "batch_size": 4, "learning_rate": 2.0e-3})


@pytest.fixture(scope="session")
def sft_run(
    tiny_model: Path,
    formatted: Path,
    sft_settings: Sft,
    compute: Compute,
    made_once: Callable[..., Path],
) -> Trained:
    """A QLoRA adapter on the tiny model."""

    def train(folder: Path) -> None:
        from tasks import sft

        out, curve = folder / "sft", folder / "sft.csv"
        metrics = sft.run(tiny_model, formatted, out, curve, sft_settings, compute)
        (folder / "metrics.json").write_text(json.dumps(metrics))

    folder = made_once("sft", train)
    metrics = json.loads((folder / "metrics.json").read_text())
    return Trained(folder / "sft", folder / "sft.csv", metrics)


@pytest.fixture(scope="session")
def dpo_run(
    tiny_model: Path,
    formatted: Path,
    sft_run: Trained,
    dpo_settings: Dpo,
    compute: Compute,
    made_once: Callable[..., Path],
) -> Trained:
    """The same adapter, continued on pairs."""

    def train(folder: Path) -> None:
        from tasks import dpo

        out, curve = folder / "dpo", folder / "dpo.csv"
        metrics = dpo.run(tiny_model, sft_run.out, formatted, out, curve, dpo_settings, compute)
        (folder / "metrics.json").write_text(json.dumps(metrics))

    folder = made_once("dpo", train)
    metrics = json.loads((folder / "metrics.json").read_text())
    return Trained(folder / "dpo", folder / "dpo.csv", metrics)


def interrupt_after(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM while a step is being done, as a spot instance gets it."""
    from tasks.lineage import tracking
    from tasks.training import loop

    log_metrics, sent = tracking.log_metrics, False

    def told(values: dict[str, float], step: int) -> None:
        nonlocal sent
        log_metrics(values, step=step)
        if step == last - 1 and not sent:  # a second one would end this process at once
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.tracking, "log_metrics", told)


def machine_names(folder: Path, *places: Path) -> list[str]:
    """Files below a folder that hold the path of a place of this machine."""
    names = [str(place).encode() for place in (*places, Path.cwd(), Path.home())]
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(name in path.read_bytes() for name in names)
    ]


def gradients(model: Any) -> dict[str, Any]:
    """By name, of the weights that have one; they are then cleared."""
    found = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    model.zero_grad()
    return found
