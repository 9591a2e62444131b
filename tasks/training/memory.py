"""How much memory a training run needs, told from the model's files without loading it.

An estimate to choose and to refuse by: for Gemma 3 270M it was 1.16 and 1.10 times the measured peak
(docs/log.md).  It counts what lives at the same time when the backward pass begins: weights,
gradients, the optimiser's two moments, the best weights so far, activations, logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.model import shapes
from tasks.params import Compute, Sft, Targets

FLOAT32 = 4
_BYTES = {"float32": 4, "bfloat16": 2}

_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: four bits, a byte a block of 64, four a group of 256 blocks (Dettmers et al. 2023)."""

_ACTIVATIONS = 2.4
"""Numbers that are kept for the backward pass, over those that go into and out of the linear layers; set
by the measurements of Gemma in docs/log.md."""

_LOGITS = 3
"""Copies of the logits that live at once in float32: themselves, their log-softmax, their gradient.
`losses` holds one chunk of them, unless a model needs its own forward."""


_LIBRARIES = 0.25e9
"""What torch and the trainers take once they compute, however small the model."""


@dataclass(frozen=True)
class Work:
    """What a stage is about to train."""

    stage: str
    """The section of params.yaml that its batch_size stands in."""
    model: Path
    trained: int | None
    """Weights of the adapter; None trains the model's own."""
    quantised: bool
    sequences: int
    """Of a batch."""
    longest: int
    """Tokens of the longest sequence, to which a batch may be padded, virtual ones before it counted."""
    own_forward: bool = False
    """Whether the model computes all logits itself, as with virtual tokens."""
    recomputes: bool = True
    """Whether activations may be recomputed: a trained prefix is a cache, which that would drop."""
    divides: bool = True
    """Whether a batch may be cut into passes: some losses compare its pairs."""
    adapter: int | None = None
    """Weights of a LoRA adapter by the stage's values, for a stage that may train one instead."""

    @property
    def tokens(self) -> int:
        """Of a batch, at most."""
        return self.sequences * self.longest


@dataclass(frozen=True)
class Need:
    """Bytes, by what takes them."""

    weights: float
    training: float
    """Gradients, moments and the best weights."""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.training + self.activations + self.logits + _LIBRARIES

    def __str__(self) -> str:
        return (
            f"{gigabytes(self.total)} (weights {gigabytes(self.weights)}, gradients and optimiser "
            f"{gigabytes(self.training)}, activations {gigabytes(self.activations)}, logits "
            f"{gigabytes(self.logits)}, libraries {gigabytes(_LIBRARIES)})"
        )


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def trained(model: Path, settings: Sft) -> int | None:
    """How many weights a method trains, at most as many as LoRA; None for all."""
    if settings.method == "full":
        return None
    wider = settings.adalora.initial_ratio if settings.method == "adalora" else 1
    return lora_weights(model, math.ceil(settings.lora_r * wider), settings.target_modules)


def lora_weights(model: Path, rank: int, targets: Targets) -> int:
    """How many weights a new LoRA adapter has."""
    vocabulary = shapes.config(model).get("vocab_size")
    chosen = [
        tensor.shape
        for name, tensor in shapes.matrices(shapes.tensors(model)).items()
        if (
            tensor.shape[0] != vocabulary
            if targets == "all-linear"
            else name.rpartition(".")[2] in targets
        )
    ]
    return sum(rank * (rows + columns) for rows, columns in chosen)


def needed(work: Work, compute: Compute) -> Need:
    """Estimate a run whose `compute` has no `auto` any more."""
    weights = shapes.tensors(work.model)
    config = shapes.config(work.model)
    vocabulary = int(config.get("vocab_size", 0))
    inner = {
        name: tensor
        for name, tensor in shapes.matrices(weights).items()
        if tensor.shape[0] != vocabulary
    }
    all_weights = sum(tensor.size for tensor in weights.values())
    linear = sum(tensor.size for tensor in inner.values())
    each = FLOAT32 if work.trained is None else _BYTES[compute.dtype]
    computed = _BYTES[compute.dtype]
    largest = max((tensor.size for tensor in inner.values()), default=0)
    if work.quantised:
        held = linear * _NF4 + (all_weights - linear) * each + largest * computed
    else:
        held = float(all_weights * each)
    if work.trained is None:
        # Autocast keeps a copy of each weight in the smaller type for the length of a pass.
        held += all_weights * computed if computed < FLOAT32 else 0
        training = all_weights * 4 * FLOAT32
    else:
        training = work.trained * 5 * FLOAT32
    from tasks.training.losses import CHUNK_LOGITS

    tokens = work.tokens
    if isinstance(compute.pass_tokens, int):
        tokens = min(tokens, max(compute.pass_tokens, work.longest))
    whole = tokens * vocabulary
    logits = whole if work.own_forward else min(whole, CHUNK_LOGITS)
    return Need(
        weights=held,
        training=float(training),
        activations=tokens * _kept(inner, config, compute, work.longest) * computed,
        logits=float(logits * _LOGITS * FLOAT32),
    )


def _kept(
    inner: dict[str, shapes.Tensor], config: dict[str, Any], compute: Compute, longest: int
) -> float:
    """Numbers that a token leaves for the backward pass."""
    layers = int(config.get("num_hidden_layers", 1))
    width = int(config.get("hidden_size", 0))
    kept = _ACTIVATIONS * sum(sum(tensor.shape) for tensor in inner.values())
    if compute.attention == "eager":  # scores and their softmax, of each head
        kept += 2 * layers * int(config.get("num_attention_heads", 0)) * longest
    if compute.gradient_checkpointing is True:  # the input of each layer, and all of one
        return layers * width + kept / layers
    return kept


Values = dict[str, Any]
"""By their place in params.yaml."""


def remedies(work: Work, compute: Compute, room: float) -> list[tuple[str, Need]]:
    """What would make a run fit into so many bytes: other values, each by itself or all together."""
    rows = f"{work.stage}.batch_size"
    passes: Values = {"compute.pass_tokens": work.longest} if work.divides else {}
    recomputed: Values = {"compute.gradient_checkpointing": True} if work.recomputes else {}
    together = (passes or {rows: 1}) | recomputed
    fewer: list[Values] = [{rows: count} for count in range(work.sequences - 1, 0, -1)]
    fitting = (way for way in fewer if _need(work, compute, way).total <= room)
    ways = [passes, next(fitting, {}), recomputed, together if len(together) > 1 else {}]
    for method in _lighter(work):
        ways += [method, method | together]
    found: dict[str, Need] = {}
    for way in ways:
        if way and (need := _need(work, compute, way)).total <= room:
            text = " and ".join(f"{key} to {str(value).lower()}" for key, value in way.items())
            found[f"set {text}"] = need
    return list(found.items())


def _lighter(work: Work) -> list[Values]:
    """Methods that hold less, of the stages that have a method."""
    nothing_lighter = work.trained is None and work.adapter is None
    if work.quantised or work.stage not in ("cpt", "sft") or nothing_lighter:
        return []
    methods = ["lora"] if work.trained is None else []
    methods += ["qlora"] if work.stage == "sft" else []
    return [{f"{work.stage}.method": method} for method in methods]


def _need(work: Work, compute: Compute, way: Values) -> Need:
    of_compute = {
        key.removeprefix("compute."): value
        for key, value in way.items()
        if key.startswith("compute.")
    }
    rows = way.get(f"{work.stage}.batch_size", work.sequences)
    method = way.get(f"{work.stage}.method")
    changed = replace(
        work,
        sequences=rows,
        quantised=work.quantised or method == "qlora",
        trained=work.adapter if method and work.trained is None else work.trained,
    )
    return needed(changed, compute.model_copy(update=of_compute))
