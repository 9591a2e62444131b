from __future__ import annotations

import random

import pytest

from tasks.lineage import compute
from tasks.params import Compute

PINNED = Compute(
    seed=7,
    threads=2,
    instruction_set="avx2",
    dtype="auto",
    attention="auto",
    gradient_checkpointing="auto",
    pass_tokens="auto",
)


def test_threads_and_instruction_set_are_pinned() -> None:
    environment = compute.environment(PINNED)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"
    assert environment["ATEN_CPU_CAPABILITY"] == "avx2"
    assert environment["PYTHONHASHSEED"] == "0"


def test_native_leaves_the_instruction_set_open() -> None:
    native = compute.environment(PINNED.model_copy(update={"instruction_set": "native"}))
    assert "ATEN_CPU_CAPABILITY" not in native
    assert "MKL_CBWR" not in native


def test_a_process_is_pinned_when_its_environment_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in compute.environment(PINNED).items():
        monkeypatch.setenv(name, value)
    assert compute.pinned(PINNED)
    assert not compute.pinned(PINNED.model_copy(update={"threads": 3}))


def test_the_seed_decides_every_generator() -> None:
    import numpy as np
    import torch

    def draw() -> tuple[float, float, float]:
        compute.seed(PINNED)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    try:
        assert draw() == draw()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("instruction_set", "flags", "missing"),
    [
        ("avx2", ["sse4_2", "avx"], "this processor has no avx2 and no fma; say native"),
        ("avx2", ["sse4_2", "avx", "avx2"], "this processor has no fma; say native"),
        ("avx2", ["avx2", "fma", "avx512f"], None),
        ("avx2", [], None),  # nothing is known of it
        ("native", ["sse4_2"], None),
    ],
)
def test_a_processor_that_cannot_compute_so_is_told(
    instruction_set: str, flags: list[str], missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute.platform, "machine", lambda: "x86_64")
    told = compute.lacking(instruction_set, flags)
    assert missing in str(told) if missing else told is None
    monkeypatch.setattr(compute.platform, "machine", lambda: "aarch64")
    assert compute.lacking(instruction_set, flags) is None
