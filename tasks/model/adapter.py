"""What the methods of training put on a model: how it is made, saved, and loaded again.

Beside PEFT's own files, or those of a complete model where the method is `full`, a folder has
`method.json`: the method, which says whether the weights below the adapter are quantised, the
manifest hash of the model that it was trained on, and the hash of every other file.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import load, source
from tasks.params import LINEAR_ALONE, PROMPT_METHODS, CptLora, Sft

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

METHOD = "method.json"


class Method(TypedDict):
    method: str
    """A value of sft.method, or none."""
    base_sha256: str
    files: dict[str, str]
    """sha256 by name: safetensors loads flipped bits without a word."""


def read_method(folder: Path) -> Method:
    """What an adapter folder says of itself.

    Raises:
        StageError: when it says nothing of the kind.
    """
    file = folder / METHOD
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        if stated["method"] not in _METHODS:
            raise ValueError(f"it names the method {stated['method']!r}")
        return Method(
            method=stated["method"],
            base_sha256=str(stated["base_sha256"]),
            files=dict(stated["files"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise StageError(f"{file} cannot be read ({reason}); {_AGAIN.format(folder)}") from None


_METHODS = (*get_args(Sft.model_fields["method"].annotation), "none")
_AGAIN = "bring it again with `dvc checkout {}`, or with `dvc repro -f` of the stage that writes it"


def _write_method(folder: Path, method: str, base: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = hashes.manifest(folder)
    stated = Method(method=method, base_sha256=hashes.sha256(base), files=files)
    text = json.dumps(stated, indent=2, sort_keys=True)
    (folder / METHOD).write_text(text + "\n", encoding="utf-8")


def write_none(base: Path, out: Path) -> None:
    """An adapter folder that stands for no adapter: the base goes on unchanged."""
    _write_method(out, "none", base)


def load_base(base: Path, method: str) -> PreTrainedModel:
    """The model below an adapter of this method, frozen."""
    if method == "qlora":
        model = load.load_quantised(base)
    else:
        model = load.load_model(base, frozen=method != "full")
    model.requires_grad_(False)
    return model


def new(base: Path, settings: Sft) -> PeftModel:
    """A model with what the method trains on it; seed before."""
    return put_on(load_base(base, settings.method), settings)


def put_on(model: PreTrainedModel, settings: Sft) -> Any:
    """Give a frozen model what the method trains: an adapter, or for `full` its own weights.

    Raises:
        StageError: when a target module does not exist, or PEFT cannot adapt it by this method.
    """
    if settings.method == "full":
        return trainable_in_float32(model.requires_grad_(True))
    from peft import get_peft_model

    adapted = get_peft_model(model, _config(model, settings))
    if settings.method == "prefix_tuning":
        _begin_with_words(adapted, settings.virtual_tokens)
    return trainable_in_float32(adapted)


def put_lora_on(model: PreTrainedModel, settings: CptLora) -> PeftModel:
    """Give a model an adapter for continued pretraining; seed before."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=_targets(model, settings.target_modules, "cpt.lora.target_modules"),
        task_type="CAUSAL_LM",
    )
    return trainable_in_float32(get_peft_model(model, config))


def load_trainable(base: Path, adapter: Path) -> Any:
    """A model with what training continues, without dropout: before the first step of DPO the policy has
    to say what the reference policy says."""
    import torch
    from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights
    from peft import set_peft_model_state_dict as put_weights

    method = checked_method(base, adapter)["method"]
    if method == "full":
        model: Any = load.load_model(adapter)
    elif method in PROMPT_METHODS:
        config = PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = False  # PEFT itself loads these to be read alone
        model = get_peft_model(load_base(base, method), config)
        put_weights(model, load_peft_weights(str(adapter)))
    else:
        model = PeftModel.from_pretrained(load_base(base, method), adapter, is_trainable=True)
    if method != "full":
        require_all_arrived(model, adapter)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainable_in_float32(model)


def require_all_arrived(model: Any, adapter: Path) -> None:
    """Raise StageError unless every tensor of an adapter belongs to a module, and every module that it
    adapts has its tensors: PEFT only warns."""
    from peft import get_peft_model_state_dict, load_peft_weights

    stored = load_peft_weights(str(adapter), device="cpu")
    arrived = get_peft_model_state_dict(model, save_embedding_layers=False)
    strange = sorted(set(stored) - set(arrived))
    if strange:
        raise StageError(
            f"{len(strange)} of {len(stored)} tensors of {adapter} belong to no module of the model, "
            f"the first {strange[0]}; run `dvc repro -f sft`"
        )
    lacking = sorted(set(arrived) - set(stored))
    if lacking:
        raise StageError(
            f"{adapter} lacks {len(lacking)} of {len(arrived)} tensors that its config names, the first "
            f"{lacking[0]}; run `dvc repro -f sft`"
        )
    for name, value in stored.items():
        if not value.isfinite().all():
            raise StageError(
                f"{adapter}: {name} has weights that are not finite (nan or infinite); run `dvc repro "
                "-f sft`, with a lower learning rate if that ends the same"
            )


def counts(model: Any) -> tuple[int, int]:
    """How many weights are trained, and how many there are."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trained, total = model.get_nb_trainable_parameters()  # knows how NF4 packs weights
        return int(trained), int(total)
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def checked_method(base: Path, adapter: Path) -> Method:
    """The adapter's method, after checking that it is what was written, and was trained on this base.

    Raises:
        StageError: when it was changed, or trained on another one.
    """
    method = read_method(adapter)
    files = hashes.manifest(adapter)
    files.pop(METHOD)
    for name in sorted(files.keys() | method["files"].keys()):
        if files.get(name) != method["files"].get(name):
            raise StageError(
                f"{adapter / name} is not what was written with {METHOD}; {_AGAIN.format(adapter)}"
            )
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
    """Undo what TRL's trainer does to an adapter while it is built: it rounds QLoRA's to bfloat16."""
    exact = {
        name: value.data.clone() for name, value in model.named_parameters() if value.requires_grad
    }
    yield
    for name, value in model.named_parameters():
        if name in exact:
            value.data = exact[name]


def save(
    model: Any, tokenizer: PreTrainedTokenizerFast, base: Path, method: str, out: Path
) -> None:
    """Write what was trained; nothing in it names a folder of this machine.

    An AdaLoRA adapter is written as the LoRA adapter of the same product, each layer in the rank that
    it ended with.
    """
    if method == "full":
        source.save(model, tokenizer, out)
        source.write_manifest(out)
    else:
        if type(model.peft_config["default"]).__name__ == "AdaLoraConfig":
            _save_final_ranks(model, out)
        else:
            model.save_pretrained(out, selected_adapters=["default"], save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)
        file = out / "adapter_config.json"
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = None  # DVC knows; a path would differ by clone
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _write_method(out, method, base)


def copy(adapter: Path, out: Path) -> None:
    """Hand an adapter on unchanged."""
    shutil.copytree(adapter, out)


def _config(model: PreTrainedModel, settings: Sft) -> PeftConfig:
    """PEFT's configuration of a method."""
    from peft import (
        AdaLoraConfig,
        IA3Config,
        LoraConfig,
        PrefixTuningConfig,
        PromptTuningConfig,
        PromptTuningInit,
    )

    method, causal = settings.method, {"task_type": "CAUSAL_LM"}
    if method in PROMPT_METHODS:
        length = {"num_virtual_tokens": settings.virtual_tokens}
        if method == "prefix_tuning":
            return PrefixTuningConfig(**length, **causal)
        # begins with the embeddings of tokens: better than noise (Lester et al. 2021)
        return PromptTuningConfig(
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB, **length, **causal
        )
    kinds = _kinds(model)
    targets = _targets(model, settings.target_modules, "sft.target_modules")
    if method in LINEAR_ALONE:
        for target in targets if isinstance(targets, list) else []:
            if kinds[target] != "Linear":
                raise StageError(
                    f"sft.target_modules: {target} is an embedding, and {method} adapts linear "
                    "layers alone; take it out, or use lora"
                )
    if method == "ia3":
        names = targets if isinstance(targets, list) else _linear(model)
        return IA3Config(
            target_modules=names, feedforward_modules=_feedforward(model, names), **causal
        )
    rank = {"lora_alpha": settings.lora_alpha, "lora_dropout": settings.lora_dropout}
    if method == "adalora":
        return AdaLoraConfig(
            init_r=math.ceil(settings.lora_r * settings.adalora.initial_ratio),
            target_r=settings.lora_r,
            # tasks.training.optimiser knows how many steps there are, and adds the penalty itself:
            # PEFT adds it to a loss that TRL's trainers do not ask for
            total_step=1,
            orth_reg_weight=0.0,
            target_modules=targets,
            **rank,
            **causal,
        )
    return LoraConfig(
        r=settings.lora_r,
        target_modules=targets,
        use_dora=method == "dora",
        use_rslora=method == "rslora",
        **rank,
        **causal,
    )


def _begin_with_words(model: PeftModel, length: int) -> None:
    """Begin prefix tuning with the keys and values of tokens that the model knows, drawn at random:
    with noise it learns slowly and unsteadily (Li and Liang 2021, section 7.4)."""
    import torch
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

    below = model.get_base_model()
    words = torch.randint(0, below.get_input_embeddings().num_embeddings, (1, length))
    with torch.no_grad():
        cache = below(input_ids=words.to(below.device), use_cache=True).past_key_values
    initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)


def _save_final_ranks(model: PeftModel, out: Path) -> None:
    """Write an AdaLoRA adapter, B diag(E) A with a mask on E, as a LoRA adapter without what the mask
    took, the scale and E in A."""
    from peft import LoraConfig
    from peft.tuners.adalora.layer import AdaLoraLayer
    from safetensors.torch import save_file

    settings = model.peft_config["default"]
    tensors, ranks = {}, {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, AdaLoraLayer):
            continue
        left, singular, right = (
            part["default"].data for part in (module.lora_B, module.lora_E, module.lora_A)
        )
        kept = singular.view(-1) != 0
        if not kept.any():
            continue  # this layer was given no rank
        scale = module.scaling["default"] / (module.ranknum["default"] + 1e-5)
        ranks[name] = int(kept.sum())
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = (right * singular * scale)[kept].contiguous().cpu()
        tensors[f"{key}.lora_B.weight"] = left[:, kept].contiguous().cpu()
    if not ranks:
        raise StageError("adalora gave no layer any rank: nothing was learned; raise sft.epochs")
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,  # alpha over rank is then 1: the scale is in A
        target_modules=sorted(ranks),
        lora_dropout=settings.lora_dropout,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(
    model: PreTrainedModel, wanted: Literal["all-linear"] | list[str], key: str
) -> str | list[str]:
    if wanted == "all-linear":
        return "all-linear"
    names = _kinds(model)
    unknown = [target for target in wanted if target not in names]
    if unknown:
        raise StageError(
            f"{key}: {', '.join(unknown)} not in this model; it has {', '.join(names)}"
        )
    return list(wanted)


def _kinds(model: PreTrainedModel) -> dict[str, str]:
    """Linear or Embedding, by the last part of a module's name, in alphabetical order."""
    import torch

    found = {}
    for name, module in model.named_modules():
        if _is_linear(module):
            found[name.rpartition(".")[2]] = "Linear"
        elif isinstance(module, torch.nn.Embedding):
            found[name.rpartition(".")[2]] = "Embedding"
    return dict(sorted(found.items()))


def _is_linear(module: Any) -> bool:
    """GPT-2 and its kin have layers of their own for it, whose weights are transposed."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _linear(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers, the output layer aside."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _is_linear(module) and module is not head
        }
    )


def _feedforward(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Layers that read the hidden state of a feed-forward block, which (IA)3 scales where it comes in
    (Liu et al. 2022); elsewhere it scales what goes out."""
    width = getattr(model.config.get_text_config(), "intermediate_size", None)
    inputs: dict[str, set[int]] = {name: set() for name in names}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in inputs and hasattr(module, "in_features"):
            inputs[last].add(module.in_features)
    return [name for name in names if inputs[name] == {width}]
