"""What must be fixed before torch is loaded so that the same inputs give the same bits."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Mapping, Sequence

from tasks.lineage import products
from tasks.params import Compute

# MKL, oneDNN, OpenBLAS and torch pick kernels by the processor they find; each has a switch of its
# own.  MKL promises equal bits on Intel and AMD only for COMPATIBLE, in which products are slow on
# Intel: torch's are handed to OpenBLAS.
_INSTRUCTION_SETS: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": products.CORE,
    },
    "native": {},
}


def lacking(instruction_set: str, flags: Sequence[str]) -> str | None:
    """What a processor with these flags lacks for an instruction set, and the way out; None where
    nothing is known to be missing.  Not told, a process ends by SIGILL."""
    if instruction_set == "native" or not flags or platform.machine() not in products.MACHINES:
        return None
    missing = [flag for flag in ("avx2", "fma") if flag not in flags]
    if not missing:
        return None
    return (
        f"is {instruction_set}, and this processor has no {' and no '.join(missing)}; say native, "
        "which gives other bits than other processors do"
    )


def environment(compute: Compute) -> dict[str, str]:
    """The environment variables under which a stage computes."""
    threads = str(compute.threads)
    return {
        "PYTHONHASHSEED": "0",  # PEFT writes a set of strings into adapter_config.json
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "MKL_DYNAMIC": "FALSE",
        "OMP_DYNAMIC": "FALSE",
        # How long a thread waits busily for work. libgomp's default makes everything ten times
        # slower when another process wants the cores; bits do not depend on it.
        "GOMP_SPINCOUNT": "1000",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TOKENIZERS_PARALLELISM": "false",
        **_INSTRUCTION_SETS[compute.instruction_set],
    }


def seed(compute: Compute) -> None:
    """Seed Python and numpy, make torch deterministic, and have it multiply as the instruction set
    says.  Call it before a model is built: PEFT draws the adapter's first weights from torch's
    generator."""
    import numpy as np
    import torch

    random.seed(compute.seed)
    np.random.seed(compute.seed)
    torch.manual_seed(compute.seed)
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True)
    if compute.instruction_set == "avx2" and pinned(compute):
        products.install(compute.threads)


def pinned(compute: Compute) -> bool:
    """Whether this process was started under `environment(compute)`."""
    return all(os.environ.get(name) == value for name, value in environment(compute).items())
