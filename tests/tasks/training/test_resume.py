"""A run that is interrupted after any step and started again ends with the bytes of one that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import Trained, interrupt_after

from tasks import cpt, dpo, sft
from tasks.lineage import hashes, unfinished
from tasks.lineage.process import Terminated
from tasks.params import Compute, Cpt, Dpo, Sft

pytest_plugins = ("small_runs",)

Run = Callable[[Path], Any]
"""Trains into a folder, which then has all that the stage writes."""


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """Where a stage keeps what its next run goes on from."""
    unfinished.use(tmp_path / "kept")
    yield tmp_path / "kept"
    unfinished.use(None)


@pytest.fixture
def training(
    tiny_model: Path,
    formatted: Path,
    sft_run: Trained,
    cpt_settings: Cpt,
    sft_settings: Sft,
    dpo_settings: Dpo,
    compute: Compute,
) -> dict[str, Run]:
    """A small run of each kind, of two epochs, and with draws from the generators where one can."""
    linear = {"target_modules": "all-linear", "lora_dropout": 0.1}
    twice = cpt_settings.model_copy(update={"epochs": 2, "block_tokens": 64})

    def supervised(changed: dict[str, Any]) -> Run:
        settings = sft_settings.model_copy(update=changed)
        return lambda to: sft.run(
            tiny_model, formatted, to / "out", to / "curve.csv", settings, compute
        )

    return {
        "cpt": lambda to: cpt.run(
            tiny_model, formatted / "corpus.jsonl", to / "out", to / "curve.csv", twice, compute
        ),
        "qlora": supervised({}),
        "qlora_dropout": supervised(linear),
        "lora_dropout": supervised(
            {"method": "lora", "batch_size": 2, "gradient_accumulation": 2, **linear}
        ),
        "dpo": lambda to: dpo.run(
            tiny_model, sft_run.out, formatted, to / "out", to / "curve.csv", dpo_settings, compute
        ),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "cpt",
        pytest.param("qlora", marks=pytest.mark.slow),
        "qlora_dropout",
        "lora_dropout",
        "dpo",
    ],
)
def test_the_same_bytes_after_an_interruption_at_each_step(
    kind: str,
    training: dict[str, Run],
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = tmp_path / "straight"
    straight.mkdir()
    unfinished.use(None)
    metrics = training[kind](straight)
    unfinished.use(kept)
    steps = metrics["steps"]
    assert steps >= 4

    pieces = tmp_path / "pieces"
    pieces.mkdir()
    for step in range(2, steps):
        with monkeypatch.context() as patched:
            interrupt_after(step, patched)
            with pytest.raises(Terminated, match=f"stopped after step {step} as asked; run again"):
                training[kind](pieces)
        assert not (pieces / "out").exists()
    assert training[kind](pieces) == metrics
    assert hashes.manifest(pieces) == hashes.manifest(straight)


@pytest.mark.parametrize("patience", [None, 1])
def test_a_signal_in_the_step_that_ends_the_run_loses_nothing(
    patience: int | None,
    tiny_model: Path,
    formatted: Path,
    sft_settings: Sft,
    compute: Compute,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the last one, or that of a validation which ends it early: the work is complete."""
    worse = {"method": "lora", "learning_rate": 5.0e-2, "warmup_share": 0.0, "epochs": 4}
    settings = sft_settings.model_copy(update={**worse, "validations": 8, "patience": patience})
    found = []
    for name in ("straight", "asked"):
        to = tmp_path / name
        inputs = tiny_model, formatted, to / "out", to / "curve.csv"
        found.append(sft.run(*inputs, settings, compute))
        unfinished.use(kept)
        interrupt_after(int(found[0]["steps"]), monkeypatch)
    assert found[0] == found[1]
    assert (found[0]["steps"] < 8) == (patience is not None)
    assert hashes.manifest(tmp_path / "straight") == hashes.manifest(tmp_path / "asked")
    assert "that step was the last: what was trained is written" in caplog.text
