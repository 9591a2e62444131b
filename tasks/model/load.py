"""Load a model folder for training or scoring, in full precision or quantised to NF4."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage.console import log
from tasks.lineage.stage import FAULT, StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_dtype: str | None = None
_attention: str | None = None

ADAPTER = "adapter"
"""Folder inside a model's, of virtual tokens that were trained and that no weight can take up."""


def use(dtype: str | None, attention: str | None) -> None:
    """Compute so from now on, in this process; None goes by the device, or by the model."""
    global _dtype, _attention
    _dtype, _attention = dtype, attention


def load_model(folder: Path, frozen: bool = False) -> PreTrainedModel:
    """A model in float32 on a CPU, in its own type on a GPU, with the virtual tokens of its folder.

    Args:
        frozen: nothing of it is trained, so that it may be held in the type that is computed in.
            Weights that are trained stay float32: most steps of an optimiser are too small for bfloat16.

    Raises:
        StageError: when a weight is not in the folder, or has another shape than config.json says.
    """
    import torch

    dtype: Any = "auto" if torch.cuda.is_available() else torch.float32
    if _dtype is not None:
        dtype = compute_dtype() if frozen else torch.float32
    model: Any = _whole(folder, dtype=dtype).to(device())
    if (folder / ADAPTER).is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / ADAPTER)
    return model


def _whole(folder: Path, **how: Any) -> Any:
    """What transformers loads from a folder, and no weight of it made up: where one is missing it only
    warns, and draws it at random."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=_attention,
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # told below, with the others
        output_loading_info=True,
        **how,
    )
    _require_whole(folder, found)
    return model


def _require_whole(folder: Path, found: Mapping[str, Set[Any]]) -> None:
    """Raise StageError unless a model had every weight that it needs, in its shape."""
    faults = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    faults += [
        f"{name} is of {tuple(stored)}, and config.json asks for {tuple(asked)}"
        for name, stored, asked in sorted(found["mismatched_keys"])
    ]
    strange = sorted(found["unexpected_keys"])
    left_out = (
        f"{len(strange)} tensors that the model has no place for, as {', '.join(strange[:1])}"
    )
    if faults:
        raise StageError(
            f"{folder} is not whole: {faults[0]}"
            + (f", and {len(faults) - 1} more weights are not right" if faults[1:] else "")
            + (f"; it has {left_out}" if strange else "")
            + "; bring the model again from its source, with the config.json that belongs to it"
        )
    if strange:
        log.warning("%s: left out %s", folder, left_out)


def virtual_tokens(folder: Path) -> int:
    """How many learned vectors a model's folder puts before each conversation."""
    return tokens_before(folder / ADAPTER)


def tokens_before(adapter: Path) -> int:
    """How many learned vectors an adapter puts before each sequence; 0 where there is none."""
    config = adapter / "adapter_config.json"
    if not config.is_file():
        return 0
    return int(json.loads(config.read_text(encoding="utf-8")).get("num_virtual_tokens", 0))


def load_quantised(folder: Path) -> PreTrainedModel:
    """A model whose linear layers are NF4 with double quantisation (Dettmers et al. 2023)."""
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(),
    )
    model: PreTrainedModel = _whole(
        folder,
        quantization_config=config,
        dtype=compute_dtype(),
        device_map={"": device()},
    )
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            _require_shape(folder, name, module)
            # Where a CPU has AVX512-BF16, bitsandbytes would score in bfloat16 what it trained in
            # float32: another model than the trained one, and other bits than elsewhere.
            module.support_avx512bf16_for_cpu = False
    return model


def _require_shape(folder: Path, name: str, layer: Any) -> None:
    """Quantised weights are packed, and transformers does not see that theirs is another shape."""
    stored, asked = tuple(layer.weight.quant_state.shape), (layer.out_features, layer.in_features)
    if stored != asked:
        mismatched = {(f"{name}.weight", stored, asked)}
        _require_whole(
            folder,
            {"missing_keys": set(), "mismatched_keys": mismatched, "unexpected_keys": set()},
        )


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype() -> Any:
    """What was chosen; else bfloat16 on a GPU, float32 on a CPU."""
    import torch

    if _dtype is not None:
        return getattr(torch, _dtype)
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def require_quantisation() -> None:
    """Quantise a few numbers before a model is loaded for it.

    Raises:
        StageError: when bitsandbytes is missing or has no backend for this machine.
    """
    import torch

    try:
        from bitsandbytes import functional

        functional.quantize_4bit(torch.zeros(64, 64, device=device()), quant_type="nf4")
    except Exception as error:  # what a missing backend raises depends on the version
        fault = StageError(
            f"sft.method: qlora needs bitsandbytes, which does not work here ({error}); "
            "`python -m bitsandbytes` says more, `pip install -r requirements.lock` brings it; or set "
            "sft.method to lora"
        )
        fault.exit_code = FAULT
        raise fault from error
