"""Fold an adapter into the weights below it, and measure whether the result is the same model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tasks.lineage.stage import StageError
from tasks.model import adapter as adapters
from tasks.model import chat, load, source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(base: Path, adapter: Path, out: Path) -> None:
    """Write base and adapter as one complete model folder.

    A QLoRA adapter was trained on weights that went to NF4 and back, so it is those that it is folded
    into; folding it into the original weights would give another model than the one that was trained.
    """
    method = adapters.checked_method(base, adapter)["method"]
    tokenizer = chat.load_tokenizer(base)
    model = load.load_model(base)
    if method == "qlora":
        _through_nf4(model, base)
    if method != "none":
        model = _fold(model, adapter)
    source.save(model, tokenizer, out)
    source.write_manifest(out)


def load_unmerged(base: Path, adapter: Path) -> Any:
    """The model as it was trained: adapter beside the (quantised) weights."""
    from peft import PeftModel

    method = adapters.checked_method(base, adapter)["method"]
    model = adapters.load_base(base, method)
    return model if method == "none" else PeftModel.from_pretrained(model, adapter)


def divergence(model: Any, other: Any, prompts: Sequence[list[int]]) -> tuple[float, float]:
    """How far two models' next-token distributions are apart on the same token ids.

    Returns:
        the mean over all positions of KL(model || other), in nats, and the share of positions at which
        both have the same likeliest token.
    """
    import torch

    total = same = count = 0.0
    with torch.no_grad():
        for ids in prompts:
            batch = torch.tensor([ids])
            mine = _log_probabilities(model, batch)
            its = _log_probabilities(other, batch)
            total += float((mine.exp() * (mine - its)).sum())
            same += float((mine.argmax(-1) == its.argmax(-1)).sum())
            count += len(ids)
    return max(total, 0.0) / count, same / count


def _log_probabilities(model: Any, batch: Any) -> Any:
    import torch

    logits = model(input_ids=batch.to(getattr(model, "device", "cpu"))).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).cpu()


class OnnxLogits:
    """An exported model that is called as transformers' models are, for `divergence`."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self._head_size = config["model"]["decoder"]["head_size"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, input_ids: Any) -> Any:
        import numpy as np
        import torch

        ids = input_ids.numpy()
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for node in self._session.get_inputs():
            if node.name.startswith("past_key_values"):  # of (batch, heads, nothing yet, width)
                shape = (1, node.shape[1], 0, self._head_size)
                feed[node.name] = np.zeros(shape, np.float32)
        (logits,) = self._session.run(["logits"], feed)
        return SimpleNamespace(logits=torch.from_numpy(logits))


def _through_nf4(model: PreTrainedModel, base: Path) -> None:
    """Replace each weight that training saw quantised by its value after the round trip."""
    import bitsandbytes as bnb
    import torch

    quantised = load.load_quantised(base)
    layers = {
        name: module
        for name, module in quantised.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }
    if not layers:
        raise StageError(
            f"no layer of {base} was quantised, though the adapter is QLoRA; "
            "check that bitsandbytes works here: `python -m bitsandbytes`"
        )
    own = dict(model.named_modules())
    for name, layer in layers.items():
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        with torch.no_grad():
            own[name].weight.copy_(weight.to(own[name].weight.dtype))


def _fold(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Add the adapter's product to the weights, and prove that every tensor of it arrived."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    wrapped = PeftModel.from_pretrained(model, adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    arrived = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    strange = sorted(set(stored) - set(arrived))
    if strange:
        raise StageError(
            f"{len(strange)} of {len(stored)} tensors of {adapter} belong to no module of the model, "
            f"the first {strange[0]}; run `dvc repro -f sft`"
        )
    # LoRA starts with one factor at zero: B of a linear layer, A of an embedding.
    if not any(stored[name].any() for name in stored if name.endswith(_FIRST_ZERO)):
        raise StageError(f"{adapter} changes nothing: it was never trained; run `dvc repro -f sft`")
    return wrapped.merge_and_unload()


_FIRST_ZERO = ("lora_B.weight", "lora_embedding_A")
