"""What `auto` means on a machine, why, and what is refused before a model is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import chosen, unfinished
from tasks.lineage.stage import FAULT, StageError
from tasks.model import load
from tasks.params import Compute
from tasks.training import machine, memory
from tasks.training.machine import Machine

GIB = 2**30
PLAIN = Machine(device="cpu", bfloat16=False, capacity=23 * GIB, free=22 * GIB)
GPU = Machine(device="NVIDIA H200", bfloat16=True, capacity=139 * GIB, free=138 * GIB)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    chosen.forget()
    unfinished.use(None)
    load.use(None, None)


@pytest.fixture
def work(tiny_model: Path) -> memory.Work:
    return memory.Work("sft", tiny_model, trained=1000, quantised=False, sequences=8, longest=100)


def settled(
    compute: Compute, work: memory.Work | None, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setattr(machine, "look", lambda compute: here)
    found = machine.settle(compute, work)
    return {name: getattr(found, name) for name in chosen.noted()["resolved"]}


def test_a_cpu_with_room_does_what_it_always_did(
    compute: Compute,
    work: memory.Work,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        found = settled(compute, work, PLAIN, monkeypatch)
    assert found == {
        "dtype": "float32",
        "attention": "sdpa",
        "gradient_checkpointing": False,
        "pass_tokens": None,
    }
    assert [record.getMessage() for record in caplog.records][:4] == [
        "dtype: float32, since compute.instruction_set avx2 has no bfloat16 arithmetic",
        "attention: sdpa, since it keeps no table of scores and repeats to the bit",
        "gradient_checkpointing: off, since it costs time and 16 GiB are enough without it",
        "pass_tokens: whole batches, since a batch of at most 8 times 100 tokens goes into 16 GiB",
    ]
    assert caplog.records[4].getMessage().startswith("memory: about 0.2")
    assert chosen.noted() == {"resolved": found, "machine": {"device": "cpu", "bfloat16": False}}


@pytest.mark.parametrize(
    ("here", "instruction_set", "dtype", "why"),
    [
        (PLAIN, "native", "float32", "since this processor has no bfloat16 arithmetic"),
        (replace(PLAIN, bfloat16=True), "native", "bfloat16", "since this processor has"),
        (GPU, "avx2", "bfloat16", "since NVIDIA H200 computes in it"),
        (replace(GPU, bfloat16=False), "avx2", "float32", "since NVIDIA H200 has no bfloat16"),
    ],
)
def test_the_type_goes_by_the_arithmetic(
    here: Machine,
    instruction_set: str,
    dtype: str,
    why: str,
    compute: Compute,
    work: memory.Work,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = compute.model_copy(update={"instruction_set": instruction_set})
    with caplog.at_level(logging.INFO):
        assert settled(asked, work, here, monkeypatch)["dtype"] == dtype
    assert f"dtype: {dtype}, {why}" in caplog.text


def test_a_small_machine_splits_batches_and_then_recomputes(
    compute: Compute, work: memory.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is set between two estimates each time: it takes the first plan that fits."""

    def need(recomputes: bool, passes: int | None) -> float:
        plan = {"dtype": "float32", "attention": "sdpa", "pass_tokens": passes}
        return memory.needed(
            work, compute.model_copy(update={**plan, "gradient_checkpointing": recomputes})
        ).total

    def plan(room: float) -> tuple[bool, int | None]:
        monkeypatch.setattr(Machine, "room", property(lambda self: room))
        found = settled(compute, work, PLAIN, monkeypatch)
        return found["gradient_checkpointing"], found["pass_tokens"]

    assert plan(need(False, None)) == (False, None)
    assert plan(need(False, None) - 1) == (False, 512)
    assert plan(need(False, 512) - 1) == (False, 256)
    assert plan(need(False, 100)) == (False, 100)
    assert plan(need(True, 100)) == (True, 100)


@pytest.mark.parametrize(
    ("what", "key", "value", "why"),
    [
        ("recomputes", "gradient_checkpointing", False, "off, since a trained prefix is a cache"),
        ("divides", "pass_tokens", None, "whole batches, since the loss compares all pairs"),
    ],
)
def test_what_the_work_cannot_do_is_not_chosen(
    what: str, key: str, value: object, why: str,
    compute: Compute, work: memory.Work, monkeypatch: pytest.MonkeyPatch, caplog: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(Machine, "room", property(lambda self: 0))
    with caplog.at_level(logging.INFO):
        assert settled(compute, replace(work, **{what: False}), PLAIN, monkeypatch)[key] == value
    assert f"{key}: {why}" in caplog.text


def test_the_choice_does_not_go_by_what_is_free(
    compute: Compute, work: memory.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = replace(PLAIN, free=1 * GIB)
    assert settled(compute, work, busy, monkeypatch) == settled(compute, work, PLAIN, monkeypatch)


def test_what_params_say_is_done(
    compute: Compute,
    work: memory.Work,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = {"dtype": "bfloat16", "attention": "eager", "gradient_checkpointing": True}
    asked = compute.model_copy(update={**said, "pass_tokens": 64})
    with caplog.at_level(logging.INFO):
        found = settled(asked, work, PLAIN, monkeypatch)
    assert found == {**said, "pass_tokens": 64}
    assert "dtype: bfloat16, as params.yaml says, though no such instructions" in caplog.text
    assert "gradient_checkpointing: on, as params.yaml says" in caplog.text


@pytest.mark.parametrize(
    ("update", "here", "told"),
    [
        (
            {"attention": "flash_attention_2"},
            PLAIN,
            r"^compute\.attention: flash_attention_2 needs a CUDA device, and torch finds none; set",
        ),
        (
            {"attention": "flash_attention_2"},
            GPU,
            r"^compute\.attention: flash_attention_2 needs the package flash-attn, which is not",
        ),
        (
            {"attention": "flash_attention_2", "dtype": "float32"},
            GPU,
            r"^compute\.attention: flash_attention_2 does not compute in float32, which compute\.dtype "
            r"is here; set compute\.dtype to bfloat16, or this to auto$",
        ),
        (
            {"attention": "flash_attention_2"},
            replace(GPU, bfloat16=False),
            r"does not compute in float32, which compute\.dtype is here; set this to auto$",
        ),
        (
            {"dtype": "bfloat16"},
            replace(GPU, bfloat16=False),
            r"^compute\.dtype: NVIDIA H200 has no bfloat16 arithmetic; set it to auto or float32$",
        ),
    ],
)
def test_what_the_machine_cannot_do_is_refused(
    update: dict[str, Any],
    here: Machine,
    told: str,
    compute: Compute,
    work: memory.Work,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StageError, match=told):
        settled(compute.model_copy(update=update), work, here, monkeypatch)
    assert chosen.noted() == {}


def test_what_does_not_fit_is_refused_with_what_would(
    compute: Compute, work: memory.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = memory.needed(
        work, compute.model_copy(update={"dtype": "float32", "pass_tokens": work.longest})
    )
    tight = replace(PLAIN, free=int(smaller.total))
    with pytest.raises(machine.TooLarge) as caught:
        settled(compute, work, tight, monkeypatch)
    assert caught.value.exit_code == FAULT
    told = str(caught.value)
    assert told.startswith(f"{work.model} does not fit: training needs about 0.2")
    assert f"and {memory.gigabytes(smaller.total)} are free on this machine; set " in told
    assert f"set compute.pass_tokens to 100 ({memory.gigabytes(smaller.total)})" in told
    with pytest.raises(machine.TooLarge, match=r"; no other value makes it fit; take a smaller"):
        settled(compute, work, replace(PLAIN, free=1000), monkeypatch)


def test_the_remedies_are_values_that_the_stage_has(compute: Compute, work: memory.Work) -> None:
    plain = compute.model_copy(
        update={"dtype": "float32", "gradient_checkpointing": False, "pass_tokens": None}
    )

    def told(room: float = 1e12, **changes: Any) -> list[str]:
        return [text for text, _ in memory.remedies(replace(work, **changes), plain, room)]

    cut, recomputed = "compute.pass_tokens to 100", "compute.gradient_checkpointing to true"
    of_cpt = [cut, "cpt.batch_size to 7", recomputed, f"{cut} and {recomputed}"]
    assert told(stage="cpt") == [f"set {way}" for way in of_cpt]
    qlora = "set sft.method to qlora"
    of_sft = ["sft" + way.removeprefix("cpt") if "batch" in way else way for way in of_cpt]
    ways = [*(f"set {way}" for way in of_sft), qlora, f"{qlora} and {of_sft[-1]}"]
    assert told() == ways
    assert told(trained=None) == told(quantised=True) == ways[:-2]
    lora = "set sft.method to lora"
    full = [*ways[:-2], lora, f"{lora} and {of_sft[-1]}", *ways[-2:]]
    assert told(trained=None, adapter=1000) == full
    of_cpt.append("cpt.method to lora")
    of_cpt.append(f"{of_cpt[-1]} and {cut} and {recomputed}")
    assert told(stage="cpt", trained=None, adapter=1000) == [f"set {way}" for way in of_cpt]
    whole = ["dpo.batch_size to 7", recomputed, f"dpo.batch_size to 1 and {recomputed}"]
    assert told(stage="dpo", divides=False) == [f"set {way}" for way in whole]
    assert told(stage="dpo", divides=False, recomputes=False) == [f"set {whole[0]}"]
    three = memory.needed(replace(work, sequences=3), plain).total
    assert "set sft.batch_size to 3" in told(three)
    assert "set sft.batch_size to 4" not in told(three)


def test_qlora_without_a_backend(
    compute: Compute, work: memory.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitsandbytes import functional

    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no kernel for cpu")

    monkeypatch.setattr(functional, "quantize_4bit", fail)
    with pytest.raises(
        StageError, match=r"^sft\.method: qlora needs bitsandbytes, .*no kernel for"
    ):
        settled(compute, replace(work, quantised=True), PLAIN, monkeypatch)


def test_checkpoints_of_another_choice_are_not_taken_up(
    compute: Compute, work: memory.Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = set()
    for attention in ("auto", "eager"):
        unfinished.use(tmp_path / "key")
        asked = compute.model_copy(update={"attention": attention})
        settled(asked, work, PLAIN, monkeypatch)
        folder = unfinished.folder()
        assert folder is not None
        assert folder.parent == tmp_path / "key"
        folders.add(folder)
    assert len(folders) == 2


def test_this_machine_is_looked_at(compute: Compute) -> None:
    here = machine.look(compute)
    assert 0 < here.free <= here.capacity
    assert here.room <= here.capacity < 2 * here.room + 2 * GIB
    assert here.gpu or not here.bfloat16  # avx2 has none


@pytest.mark.parametrize(
    ("limit", "used", "stat", "cache"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ],
)
def test_a_container_has_less(limit: str, used: str, stat: str, cache: str, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000000\n")
    (tmp_path / used).write_text("700000\n")
    (tmp_path / stat).write_text(f"anon 5\n{cache} 100000\n")
    assert machine._main_memory(tmp_path) == (1_000_000, 400_000)
    (tmp_path / limit).write_text("max\n")
    assert machine._main_memory(tmp_path)[0] > 1_000_000


def test_the_estimate_counts_weights_by_their_type(tiny_model: Path, compute: Compute) -> None:
    plain = compute.model_copy(
        update={"dtype": "float32", "gradient_checkpointing": False, "pass_tokens": None}
    )
    work = memory.Work("sft", tiny_model, trained=0, quantised=False, sequences=1, longest=1)
    size = (tiny_model / "model.safetensors").stat().st_size
    whole = memory.needed(work, plain)
    assert whole.weights == pytest.approx(size, rel=0.02)
    half = memory.needed(work, plain.model_copy(update={"dtype": "bfloat16"}))
    assert half.weights == whole.weights / 2
    assert memory.needed(replace(work, quantised=True), plain).weights < whole.weights
    full = memory.needed(replace(work, trained=None), plain)
    assert full.training == 4 * full.weights  # gradients, two moments, the best so far


def test_an_adapter_is_counted_from_the_heads_of_the_files(
    tiny_model: Path, compute: Compute, sft_settings: Any, tmp_path: Path
) -> None:
    from tasks.model import adapter

    for targets in ("all-linear", ["q_proj", "embed_tokens"]):
        settings = sft_settings.model_copy(update={"method": "lora", "target_modules": targets})
        counted, _ = adapter.new(tiny_model, settings).get_nb_trainable_parameters()
        assert memory.trained(tiny_model, settings) == counted


def test_records_are_json(compute: Compute, work: memory.Work, monkeypatch: Any) -> None:
    settled(compute, work, PLAIN, monkeypatch)
    assert json.loads(json.dumps(chosen.noted())) == chosen.noted()


pytest_plugins = ("small_runs",)
