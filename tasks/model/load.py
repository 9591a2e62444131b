"""Load a model folder for training or scoring, in full precision or quantised to NF4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype: Any = "auto" if torch.cuda.is_available() else torch.float32
    if _dtype is not None:
        dtype = compute_dtype() if frozen else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=_attention,
        local_files_only=True,
        use_safetensors=True,
    )
    model = model.to(device())
    if (folder / ADAPTER).is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / ADAPTER)
    return model


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
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(),
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=config,
        dtype=compute_dtype(),
        attn_implementation=_attention,
        device_map={"": device()},
        local_files_only=True,
        use_safetensors=True,
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Where a CPU has AVX512-BF16, bitsandbytes would score in bfloat16 what it trained in
            # float32: another model than the trained one, and other bits than elsewhere.
            module.support_avx512bf16_for_cpu = False
    return model


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
