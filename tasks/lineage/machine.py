"""What of this machine can change the bits of a result.

Read without importing any of the libraries, so that it costs milliseconds.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "torch",
    "numpy",
    "scipy-openblas64",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "onnxruntime",
    "onnxruntime-genai",
)
_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2",
    "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "bf16", "sve", "sve2",
)  # fmt: skip
"""Instruction sets by which MKL, oneDNN, torch and onnxruntime pick kernels."""

_SWITCHES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "CUBLAS_WORKSPACE_CONFIG",
)


def facts() -> dict[str, Any]:
    """JSON-ready: os, libc, python, cpu {model, flags, count}, gpus, switches, libraries."""
    return {
        "os": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "libc": "-".join(platform.libc_ver()),
        "python": platform.python_version(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "gpus": _gpus(Path("/proc/driver/nvidia/gpus")),
        "switches": {name: os.environ[name] for name in _SWITCHES if name in os.environ},
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def _cpu(cpuinfo: Path) -> dict[str, Any]:
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    known = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "model": fields.get("model name") or platform.processor() or "unknown",
        "flags": [flag for flag in _FLAGS if flag in known],
        "count": os.cpu_count(),
    }


def cpu_flags() -> list[str]:
    """The instruction sets of this processor, of those that change results."""
    flags: list[str] = _cpu(Path("/proc/cpuinfo"))["flags"]
    return flags


def _gpus(folder: Path) -> list[str]:
    """The names that the NVIDIA driver gives its cards."""
    names = []
    for path in sorted(folder.glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                names.append(value.strip())
    return names


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
