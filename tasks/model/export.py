"""Export of a complete model to the format that onnxruntime-genai serves."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.lineage import process
from tasks.lineage.stage import StageError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)

_ROOT = Path(__file__).parents[2]
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
_SHOWN_LINES = 15


def export_onnx(jobs: Sequence[tuple[Path, Path]], precision: str) -> None:
    """Export folders in Hugging Face format to folders for onnxruntime-genai, for the CPU.

    One subprocess serves all jobs, since loading the builder takes longer than exporting a small
    model.  The same model gives the same bytes: the tokenizer's files are copied from the source,
    because the builder writes them anew, with keys that depend on where they were read from.

    Args:
        jobs: pairs of source folder and output folder; an output is created when it is absent.
        precision: "fp32" or "int4".

    Raises:
        StageError: when the builder fails; the end of what it printed is part of the message.
    """
    if not jobs:
        return
    with tempfile.TemporaryDirectory(prefix="tunetrail-export-") as cache:
        order = {
            "jobs": [[str(source.resolve()), str(out.resolve())] for source, out in jobs],
            "precision": precision,
            "cache": cache,
        }
        builder = subprocess.run(
            [sys.executable, "-m", "tasks.model.export"],
            check=False,
            input=json.dumps(order),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=_ROOT,
            # Without git the builder does not write the commit of this folder into the model.
            env={**os.environ, **_OFFLINE, "GIT_DIR": os.devnull},
        )
    if builder.returncode:
        folders = ", ".join(str(source) for source, _ in jobs)
        shown = "\n".join(builder.stdout.replace("\r", "\n").strip().splitlines()[-_SHOWN_LINES:])
        raise StageError(
            f"{folders} cannot be exported to ONNX: onnxruntime-genai's builder exited with "
            f"{builder.returncode}; set merge.onnx to false in params.yaml, then the model is "
            f"evaluated and served with transformers. It printed:\n{shown}"
        )
    for source, out in jobs:
        for written in TOKENIZER_FILES:
            (out / written).unlink(missing_ok=True)
            if (source / written).is_file():
                shutil.copyfile(source / written, out / written)


def exported_precision(folder: Path) -> str:
    """The precision, "fp32" or "int4", that a folder was exported with.

    The builder writes quantised weights as operators of type MatMulNBits.
    """
    return "int4" if b"MatMulNBits" in (folder / "model.onnx").read_bytes() else "fp32"


def _build() -> None:
    """The subprocess: read the order from standard input and carry it out."""
    process.die_with_parent()
    order = json.load(sys.stdin)
    builder = importlib.import_module("onnxruntime_genai.models.builder")
    for source, out in order["jobs"]:
        place = (source, source, out, order["precision"], "cpu", order["cache"])
        options = builder.parse_extra_options(*place, [])
        _flatten_rope(options["hf_details"]["hf_config"])
        builder.create_model(*place, **options)


def _flatten_rope(config: Any) -> None:
    """Give the builder the rotary settings of Gemma 3 in the form of transformers 4.

    Since transformers 5 they are nested by kind of layer, which the builder (0.18.0) reads for
    Gemma 4 alone.
    """
    nested = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "gemma3_text" and "full_attention" in nested:
        config.rope_parameters = nested["full_attention"]
        config.rope_local_base_freq = nested["sliding_attention"]["rope_theta"]


if __name__ == "__main__":
    _build()
