"""Load a model folder for training or scoring, in full precision or quantised to NF4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ADAPTER = "adapter"
"""Folder inside a model's, of virtual tokens that were trained and that no weight can take up."""


def load_model(folder: Path) -> PreTrainedModel:
    """A model in float32 on a CPU, in its own type on a GPU, with the virtual tokens of its folder."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype: Any = "auto" if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    model = model.to(device())
    if (folder / ADAPTER).is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / ADAPTER)
    return model


def virtual_tokens(folder: Path) -> int:
    """How many learned vectors a model's folder puts before each conversation."""
    config = folder / ADAPTER / "adapter_config.json"
    if not config.is_file():
        return 0
    return int(json.loads(config.read_text(encoding="utf-8"))["num_virtual_tokens"])


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
    """bfloat16 where the hardware has it; without it a bfloat16 step is 12 times slower."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
