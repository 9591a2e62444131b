"""What `auto` in params.compute means on this machine and for this model, and why.

The same kind of machine gives the same values: they decide bits.  So they follow from what the machine
has at all; what happens to be free only decides whether a run may start.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lineage import chosen, unfinished
from tasks.lineage import machine as facts
from tasks.lineage.console import log
from tasks.lineage.stage import FAULT, StageError
from tasks.model import load
from tasks.params import Compute
from tasks.training import memory
from tasks.training.memory import Work, gigabytes

Choice = tuple[Any, str]
"""A value, and why."""

_GIB = 2**30
_AS_ASKED = "as params.yaml says"


class TooLarge(StageError):
    """What is to be trained does not fit into the memory that is free."""

    exit_code = FAULT


@dataclass(frozen=True)
class Machine:
    """What decides the values."""

    device: str
    """cpu, or the name of the GPU."""
    bfloat16: bool
    """Whether there are instructions for it, and stages may use them."""
    capacity: int
    """Bytes of memory that a process may ever have, on the device."""
    free: int
    """Bytes of it that nothing uses now."""

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def room(self) -> int:
        """What a run is planned for: coarse, so that like machines choose alike."""
        return int(2 ** ((self.capacity // _GIB).bit_length() - 1)) * _GIB


def look(compute: Compute) -> Machine:
    """Look at this machine."""
    import torch

    if torch.cuda.is_available():
        free, capacity = torch.cuda.mem_get_info()
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine(torch.cuda.get_device_name(), bool(supported), capacity, free)
    flags = facts.cpu_flags() if compute.instruction_set == "native" else ()
    capacity, free = _main_memory(Path("/sys/fs/cgroup"))
    return Machine("cpu", any(flag in flags for flag in _BFLOAT16), capacity, free)


_BFLOAT16 = ("amx_bf16", "avx512_bf16")


def _main_memory(cgroup: Path) -> tuple[int, int]:
    """Bytes that there are and that are free, within the limits of a container."""
    import psutil

    memory = psutil.virtual_memory()
    capacity, free = int(memory.total), int(memory.available)
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),  # version 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((cgroup / limit).read_text())
            taken = int((cgroup / used).read_text())
            lines = (cgroup / used).with_name("memory.stat").read_text().split("\n")
        except (OSError, ValueError):  # no such file, or "max"
            continue
        given_back = sum(int(line.split()[1]) for line in lines if line.startswith(f"{cache} "))
        capacity, free = min(capacity, most), min(free, most - taken + given_back)
    return capacity, max(free, 0)


def settle(compute: Compute, work: Work | None) -> Compute:
    """Resolve each `auto`, say why, record it, and load models that way from now on.

    Args:
        work: what is to be trained; None for a model that is only being built, of any size.

    Raises:
        StageError: when this machine cannot do what params.yaml asks for.
        TooLarge: when the run needs more memory than is free.
    """
    here = look(compute)
    dtype, attention = _dtype(compute, here), _attention(compute)
    known = compute.model_copy(update={"dtype": dtype[0], "attention": attention[0]})
    _refuse_impossible(known, here)
    if work and work.quantised:
        load.require_quantisation()
    checkpointing, passes = _plan(known, work, here)
    found = {
        "dtype": dtype,
        "attention": attention,
        "gradient_checkpointing": checkpointing,
        "pass_tokens": passes,
    }
    for name, (value, why) in found.items():
        log.info("%s: %s, %s", name, _word(value), why)
    values = {name: value for name, (value, _) in found.items()}
    settled = compute.model_copy(update=values)
    if work:
        _refuse_too_large(work, settled, here)
    chosen.note(values, {"device": here.device, "bfloat16": here.bfloat16})
    unfinished.narrow(values)
    load.use(settled.dtype, settled.attention)
    return settled


def _word(value: Any) -> str:
    return {None: "whole batches", True: "on", False: "off"}.get(value, str(value))


def _refuse_impossible(compute: Compute, here: Machine) -> None:
    """Raise for a `compute` whose dtype and attention are known."""
    if compute.attention == "flash_attention_2":
        if not here.gpu:
            raise StageError(
                "compute.attention: flash_attention_2 needs a CUDA device, and torch finds none; set it "
                "to auto, or look at `nvidia-smi` and `python -m torch.utils.collect_env`"
            )
        if compute.dtype == "float32":
            remedy = "set compute.dtype to bfloat16, or this" if here.bfloat16 else "set this"
            raise StageError(
                "compute.attention: flash_attention_2 does not compute in float32, which compute.dtype "
                f"is here; {remedy} to auto"
            )
        if importlib.util.find_spec("flash_attn") is None:
            raise StageError(
                "compute.attention: flash_attention_2 needs the package flash-attn, which is not "
                "installed; `pip install flash-attn`, or set it to auto"
            )
    if compute.dtype == "bfloat16" and here.gpu and not here.bfloat16:
        raise StageError(
            f"compute.dtype: {here.device} has no bfloat16 arithmetic; set it to auto or float32"
        )


def _dtype(compute: Compute, here: Machine) -> Choice:
    if compute.dtype != "auto":
        slow = compute.dtype == "bfloat16" and not here.bfloat16
        note = ", though no such instructions may be used here: it was 12 times slower than float32"
        return compute.dtype, _AS_ASKED + (note if slow else "")
    if here.gpu:
        if here.bfloat16:
            return "bfloat16", f"since {here.device} computes in it"
        return "float32", f"since {here.device} has no bfloat16 arithmetic"
    if compute.instruction_set == "avx2":
        return "float32", "since compute.instruction_set avx2 has no bfloat16 arithmetic"
    if here.bfloat16:
        return "bfloat16", "since this processor has instructions for it"
    return "float32", "since this processor has no bfloat16 arithmetic"


def _attention(compute: Compute) -> Choice:
    if compute.attention != "auto":
        return compute.attention, _AS_ASKED
    return "sdpa", "since it keeps no table of scores and repeats to the bit"


def _plan(compute: Compute, work: Work | None, here: Machine) -> tuple[Choice, Choice]:
    """Recompute activations, and split batches, where the machine is too small otherwise."""
    if work is None:
        built = "for a model that is built here"
        return (compute.gradient_checkpointing is True, built), (None, built)
    ways = [False, True] if work.recomputes else [False]
    sizes = _sizes(work) if work.divides else [None]
    plans = [
        (recomputes, size)
        for recomputes in _open(compute.gradient_checkpointing, ways)
        for size in _open(compute.pass_tokens, sizes)
    ]
    fitting = (plan for plan in plans if _fits(compute, work, here, *plan))
    recomputes, size = next(fitting, plans[-1])
    return (
        (recomputes, _why_recomputed(compute, work, here, recomputes)),
        (size, _why_cut(compute, work, here, size)),
    )


def _open(asked: Any, values: list[Any]) -> list[Any]:
    """What there is to choose from."""
    return values if asked == "auto" else [asked]


def _why_recomputed(compute: Compute, work: Work, here: Machine, recomputes: bool) -> str:
    if compute.gradient_checkpointing != "auto":
        return _AS_ASKED
    if not work.recomputes:
        return "since a trained prefix is a cache, which that would drop"
    if recomputes:
        return f"since activations take more than {here.room // _GIB} GiB otherwise"
    return f"since it costs time and {here.room // _GIB} GiB are enough without it"


def _why_cut(compute: Compute, work: Work, here: Machine, size: int | None) -> str:
    if compute.pass_tokens != "auto":
        return _AS_ASKED
    if not work.divides:
        return "since the loss compares all pairs of a batch"
    if size is not None:
        return f"since larger passes take more than {here.room // _GIB} GiB"
    batch = f"{work.sequences} times {work.longest} tokens"
    return f"since a batch of at most {batch} goes into {here.room // _GIB} GiB"


def _sizes(work: Work) -> list[int | None]:
    """Whole batches, then halves of a round number, down to the longest sequence alone."""
    sizes: list[int | None] = [None]
    size = 2 ** (work.tokens.bit_length() - 1)
    while size >= work.longest:
        sizes.append(size)
        size //= 2
    return [*sizes, work.longest]


def _fits(compute: Compute, work: Work, here: Machine, recomputes: bool, size: int | None) -> bool:
    plan = compute.model_copy(update={"gradient_checkpointing": recomputes, "pass_tokens": size})
    return memory.needed(work, plan).total <= here.room


def _refuse_too_large(work: Work, settled: Compute, here: Machine) -> None:
    need = memory.needed(work, settled)
    log.info("memory: about %s, %s are free", need, gigabytes(here.free))
    if need.total <= here.free:
        return
    ways = [
        f"{text} ({gigabytes(less.total)})"
        for text, less in memory.remedies(work, settled, here.free)
    ]
    remedy = ", or ".join(ways) or "no other value makes it fit; take a smaller model"
    place = here.device if here.gpu else "this machine"
    raise TooLarge(
        f"{work.model} does not fit: training needs about {need}, and {gigabytes(here.free)} are free "
        f"on {place}; {remedy}, or end what else runs here"
    )
