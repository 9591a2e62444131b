"""Adapters: how one is put on a model, saved, and loaded again.

Beside PEFT's own files an adapter folder has `method.json`: the method, which says whether the weights
below the adapter are quantised, and the manifest hash of the model that it was trained on.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import load
from tasks.params import Sft

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

METHOD = "method.json"


class Method(TypedDict):
    method: Literal["none", "lora", "qlora"]
    base_sha256: str


def read_method(folder: Path) -> Method:
    """What an adapter folder says of itself."""
    method: Method = json.loads((folder / METHOD).read_text(encoding="utf-8"))
    return method


def _write_method(folder: Path, method: Method) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(method, indent=2, sort_keys=True)
    (folder / METHOD).write_text(text + "\n", encoding="utf-8")


def write_none(base: Path, out: Path) -> None:
    """An adapter folder that stands for no adapter: the base goes on unchanged."""
    _write_method(out, {"method": "none", "base_sha256": hashes.sha256(base)})


def load_base(base: Path, method: str) -> PreTrainedModel:
    """The model below an adapter of this method, frozen."""
    if method == "qlora":
        model = load.load_quantised(base)
    else:
        model = load.load_model(base, frozen=method != "full")
    model.requires_grad_(False)
    return model


def new(base: Path, settings: Sft) -> PeftModel:
    """A model with a fresh adapter; seed before."""
    from peft import LoraConfig, get_peft_model

    model = load_base(base, settings.method)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_targets(model, settings),
        task_type="CAUSAL_LM",
    )
    return trainable_in_float32(get_peft_model(model, config))


def load_trainable(base: Path, adapter: Path) -> PeftModel:
    """A model with an adapter that training continues."""
    from peft import PeftModel

    method = checked_method(base, adapter)
    model = load_base(base, method["method"])
    return trainable_in_float32(PeftModel.from_pretrained(model, adapter, is_trainable=True))


def checked_method(base: Path, adapter: Path) -> Method:
    """The adapter's method, after checking that it was trained on this base.

    Raises:
        StageError: when it was trained on another one.
    """
    method = read_method(adapter)
    found = hashes.sha256(base)
    if method["base_sha256"] != found:
        raise StageError(
            f"{adapter} was trained on another model than {base} (sha256 "
            f"{method['base_sha256'][:12]}, found {found[:12]}); run `dvc repro sft`"
        )
    return method


def trainable_in_float32(model: PeftModel) -> PeftModel:
    """A copy in bfloat16 would neither resume exactly nor be fast on a CPU."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


@contextlib.contextmanager
def kept_in_float32(model: PeftModel) -> Iterator[None]:
    """Undo what TRL's trainers do to an adapter while they are built.

    They round a QLoRA adapter to bfloat16, and the reference copy that they make of it for DPO leaves
    out the adapters of embeddings.
    """
    exact = {
        name: value.data.clone() for name, value in model.named_parameters() if value.requires_grad
    }
    yield
    for name, value in model.named_parameters():
        original = exact.get(re.sub(r"\.ref(?=\.|$)", ".default", name))
        if original is not None:
            value.data = original.clone()


def save(model: PeftModel, base: Path, method: Literal["lora", "qlora"], out: Path) -> None:
    """Write the adapter named `default`; nothing in it names a folder of this machine."""
    model.save_pretrained(out, selected_adapters=["default"], save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None  # DVC knows; a path would differ from clone to clone
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _write_method(out, {"method": method, "base_sha256": hashes.sha256(base)})


def copy(adapter: Path, out: Path) -> None:
    """Hand an adapter on unchanged."""
    shutil.copytree(adapter, out)


def _targets(model: PreTrainedModel, settings: Sft) -> str | list[str]:
    if settings.target_modules == "all-linear":
        return "all-linear"
    import torch

    names = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
        }
    )
    unknown = [target for target in settings.target_modules if target not in names]
    if unknown:
        raise StageError(
            f"sft.target_modules: {', '.join(unknown)} not in this model; it has {', '.join(names)}"
        )
    return list(settings.target_modules)
