"""Fold an adapter into the weights below it, and measure whether the result is the same model."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import adapter as adapters
from tasks.model import chat, handoff, load, source
from tasks.params import PROMPT_METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_STAGES = shutil.ignore_patterns(adapters.METHOD, handoff.FILE)
"""What a model's folder has for the next stage, and who serves it needs not."""

PROMPTS = 16
"""How many test conversations models are compared on."""


@dataclass(frozen=True)
class Merged:
    """How a complete model was made."""

    into: str
    """original: the weights below the adapter; nf4: those after the way to NF4 and back; weights: there
    was no adapter to fold; adapter: it stands beside the weights, since no weight can take it up."""
    compared: dict[str, tuple[float, float]]
    """What `divergence` found, by weights that the adapter was folded into, where there was a choice."""


def merge(
    trained: Any, base: Path, adapter: Path, out: Path, prompts: Sequence[list[int]]
) -> Merged:
    """Write base and adapter as one complete model folder.

    An adapter of QLoRA was trained on weights that went to NF4 and back.  Folded into those it gives the
    trained model; folded into the original weights it gives another one, most often a worse match.  Both
    are compared with the trained model, and the closer one is written.

    Virtual tokens are no part of any weight: their folder has the base model, and what was trained in
    `adapter`, which `load.load_model` puts on.

    Args:
        trained: the model as it was trained, of `load_unmerged`.
        prompts: token ids that ways of folding are compared on.

    Raises:
        StageError: when the adapter changes nothing or does not belong to the model.
    """
    method = adapters.checked_method(base, adapter)["method"]
    if method in PROMPT_METHODS:
        _check_changes_answers(trained, adapter, prompts)
        shutil.copytree(base, out, ignore=_OF_STAGES)
        shutil.copytree(adapter, out / load.ADAPTER, ignore=_OF_STAGES)
        source.write_manifest(out)
        return Merged("adapter", {})
    if method == "full":
        _check_other_weights(base, adapter)
        shutil.copytree(adapter, out, ignore=_OF_STAGES)
        source.write_manifest(out)
        return Merged("weights", {})
    tokenizer = chat.load_tokenizer(base)
    if method == "none":
        source.save(load.load_model(base), tokenizer, out)
        source.write_manifest(out)
        return Merged("weights", {})

    ways = ["original", "nf4"] if method == "qlora" else ["original"]
    compared: dict[str, tuple[float, float]] = {}
    folded = None
    if len(ways) > 1:
        for way in ways:
            folded = None  # one at a time in memory
            folded = _folded(way, trained, base, adapter)
            compared[way] = divergence(trained, folded, prompts)
    best = min(reversed(ways), key=lambda way: compared[way][0]) if compared else ways[0]
    if folded is None or best != ways[-1]:
        folded = _folded(best, trained, base, adapter)
    source.save(folded, tokenizer, out)
    source.write_manifest(out)
    return Merged(best, compared)


def load_unmerged(base: Path, adapter: Path) -> Any:
    """The model as it was trained: adapter beside the (quantised) weights, or all weights of its own."""
    from peft import PeftModel

    method = adapters.checked_method(base, adapter)["method"]
    if method == "full":
        return load.load_model(adapter)
    model = adapters.load_base(base, method)
    return model if method == "none" else PeftModel.from_pretrained(model, adapter)


def fixed_conversations(data: Path, model: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the first test conversations with their answers, and of what asks for the last.

    Raises:
        StageError: when there are none.
    """
    tokenizer = chat.load_tokenizer(model)
    file = data / "test.jsonl"
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, PROMPTS)]
    if not rows:
        raise StageError(
            f"{file} holds no rows, and what is merged is compared with what was trained on them; see "
            "models/format.metrics.json for where they went, or hold more out (format.split)"
        )
    turns = [row["messages"] for row in rows]
    rendered = chat.all_or_raise(chat.render_many(turns, tokenizer))
    asked = chat.all_or_raise(chat.render_prompts([turn[:-1] for turn in turns], tokenizer))
    return [conversation.ids for conversation in rendered], asked


def greedy(model: Any, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
    """Each prompt with its greedy continuation behind, of `new` tokens or up to an end of text."""
    import torch
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    continued = []
    with torch.no_grad():
        for ids in prompts:
            batch = torch.tensor([ids], device=model.device)
            found = model.generate(
                batch, attention_mask=torch.ones_like(batch), generation_config=settings
            )
            continued.append(found[0].tolist())
    return continued


def same_continuations(
    model: Any, prompts: Sequence[list[int]], continued: Sequence[list[int]]
) -> float:
    """Share of prompts that a model continues greedily with these same tokens.

    One pass over prompt and continuation tells that: its greedy answer is the same if and only if each
    token of it is the likeliest after those before it.
    """
    import torch

    same = 0
    with torch.no_grad():
        for prompt, whole in zip(prompts, continued, strict=True):
            batch = torch.tensor([whole[:-1]])
            likeliest = _logits(model, batch)[len(prompt) - 1 :].argmax(-1)
            same += likeliest.tolist() == whole[len(prompt) :]
    return same / len(prompts)


def divergence(model: Any, other: Any, prompts: Sequence[list[int]]) -> tuple[float, float]:
    """How far two models' next-token distributions are apart on the same token ids.

    Returns:
        the mean over all positions of KL(model || other), in nats, infinite where either gives what is
        no number; and the share of positions at which both have the same likeliest token.
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
    return max(total, 0.0) / count if math.isfinite(total) else math.inf, same / count


def _log_probabilities(model: Any, batch: Any) -> Any:
    import torch

    return torch.log_softmax(_logits(model, batch).double(), dim=-1).cpu()


def _logits(model: Any, batch: Any) -> Any:
    """Of the given tokens alone, not of virtual ones before them."""
    logits = model(input_ids=batch.to(getattr(model, "device", "cpu"))).logits[0]
    return logits[-batch.shape[1] :]


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


def _folded(way: str, trained: Any, base: Path, adapter: Path) -> PreTrainedModel:
    """The base model with the adapter in its weights."""
    model = load.load_model(base)
    if way == "nf4":
        _through_nf4(model, trained)
    return _fold(model, adapter)


def _through_nf4(model: PreTrainedModel, trained: Any) -> None:
    """Replace each weight that training saw quantised by its value after the round trip."""
    import bitsandbytes as bnb
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = {
        name.removesuffix(".base_layer"): module
        for name, module in trained.get_base_model().named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }
    if not layers:
        raise StageError(
            "no layer of the trained model is quantised, though the adapter is QLoRA; "
            "check that bitsandbytes works here: `python -m bitsandbytes`"
        )
    own = dict(model.named_modules())
    for name, layer in layers.items():
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        into = own[name]
        with torch.no_grad():  # GPT-2's own kind of layer has the weight transposed
            into.weight.copy_(weight.T if isinstance(into, Conv1D) else weight)


def _fold(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Add what the adapter does to the weights, and prove that all of it arrived, each in its layer."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    wrapped = PeftModel.from_pretrained(model, adapter)
    adapters.require_all_arrived(wrapped, adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    if not _changes_weights(stored):
        raise StageError(_CHANGES_NOTHING.format(adapter))
    layers = {
        name: _sums(module.get_base_layer().weight)
        for name, module in wrapped.get_base_model().named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    folded = wrapped.merge_and_unload()
    for name, before in layers.items():
        own = {key: value for key, value in stored.items() if f".{name}." in key}
        if _changes_weights(own) and before.equal(_sums(folded.get_submodule(name).weight)):
            raise StageError(
                f"what {adapter} does to {name} did not arrive in its weights: the folded layer is the "
                "one below the adapter; check that requirements.lock is what is installed (`tunetrail "
                "check`), and run `dvc repro -f merge`"
            )
    return folded


def _sums(weight: Any) -> Any:
    """Of a matrix's columns: others once it has changed, and small enough to keep for each layer."""
    import torch

    return weight.detach().sum(0, dtype=torch.float64)


_CHANGES_NOTHING = "{} changes nothing: it was never trained; run `dvc repro -f sft`"


def _changes_weights(stored: Mapping[str, Any]) -> bool:
    """Whether tensors of an adapter do anything: (IA)3 scales by other factors than 1, and LoRA and its
    kin, which begin with one factor at zero, have a module whose factors both are not."""
    if any((value != 1).any() for name, value in stored.items() if name.endswith("ia3_l")):
        return True
    return any(
        value.any() and stored[name.replace("_A", "_B")].any()
        for name, value in stored.items()
        if name.endswith(("lora_A.weight", "lora_embedding_A"))
    )


def _check_other_weights(base: Path, trained: Path) -> None:
    """Raise unless weights that were all trained are others than before."""
    before, after = (
        {file.name: hashes.file_hash(file, "sha256") for file in folder.glob("*.safetensors")}
        for folder in (base, trained)
    )
    if before == after:
        raise StageError(_CHANGES_NOTHING.format(trained))


def _check_changes_answers(trained: Any, adapter: Path, prompts: Sequence[list[int]]) -> None:
    """Raise unless virtual tokens are read: with them a model answers otherwise than without."""
    import torch

    batch = torch.tensor([prompts[0]])
    with torch.no_grad():
        with_it = _logits(trained, batch)
        with trained.disable_adapter():
            without = _logits(trained, batch)
    if torch.equal(with_it, without):
        raise StageError(_CHANGES_NOTHING.format(adapter))
