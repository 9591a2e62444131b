"""Fold the adapter into the weights, export ONNX, and prove that what is served is what was trained."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.lineage import stage, tracking
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import GateError, Metrics, Out
from tasks.model import chat, handoff, load, merging
from tasks.params import Compute, Merge

CONTINUED = 16
"""Tokens of the greedy answers that are compared."""

COMPUTED = "float32"
"""What is folded and compared, on a GPU too: in bfloat16 the sum of a weight and what was learned is
rounded by as much as an adapter changes."""


def run(
    base: Path, adapter: Path, data: Path, out: Out, onnx: Out, merge: Merge, compute: Compute
) -> Metrics:
    """Write the merged model and its ONNX export. Fails when either answers differently."""
    quiet()
    seed(compute)
    load.use(COMPUTED, None)
    check_contract(data, base)
    prompts, asked = merging.fixed_conversations(data, base)
    trained = merging.load_unmerged(base, adapter)
    handoff.require(trained, adapter, "what merge has loaded", _LOADED, COMPUTED)
    made = merging.merge(trained, base, adapter, out, prompts)
    _tell(made)
    check_contract(data, out)

    merged = load.load_model(out)
    answered = merging.greedy(merged, asked, CONTINUED)
    metrics = {
        "into": made.into,
        **{f"{way}_same_token": round(same, 2) for way, (_, same) in made.compared.items()},
        **compared("merged", merging.divergence(trained, merged, prompts), merge),
        "merged_same_answer": round(merging.same_continuations(trained, asked, answered), 2),
    }
    onnx.mkdir(parents=True)
    if not merge.onnx:
        log.info("ONNX export switched off; the merged model is what is served")
        return metrics
    from tasks.model.export import export_onnx

    export_onnx([(out, onnx)], merge.onnx_precision)
    check_contract(data, onnx)
    check_ends(out, onnx)
    size = sum(file.stat().st_size for file in onnx.iterdir())
    log.info("exported to ONNX: %.1f MB, %s", size / 1e6, merge.onnx_precision)
    served = merging.OnnxLogits(onnx, compute.threads)
    return metrics | {
        **compared("onnx", merging.divergence(merged.cpu(), served, prompts), merge),
        "onnx_same_answer": round(merging.same_continuations(served, asked, answered), 2),
    }


_LOADED = "run `dvc repro -f dpo`, and check that models/dpo is what it wrote: `dvc status dpo`"


def _tell(made: merging.Merged) -> None:
    for way, (kl, same) in made.compared.items():
        log.info("folded into %s weights: KL %.2g, same token %.2f%%", way, kl, 100 * same)
        tracking.log_metrics({f"{way}_kl": kl})
    log.info(
        "%s",
        {
            "original": "the adapter is in the weights",
            "nf4": "the adapter is in the weights as NF4 gives them back",
            "weights": "there is no adapter to fold: the weights are what was trained",
            "adapter": "virtual tokens cannot be folded into weights: they lie beside them, and the "
            "model is served with transformers and PEFT",
        }[made.into],
    )


def compared(what: str, found: tuple[float, float], merge: Merge) -> dict[str, float]:
    """The metrics of one comparison. Raises GateError when the models are too far apart."""
    kl, agreement = found
    log.info("%s: KL %.2g nats a token, same token %.2f%%", what, kl, 100 * agreement)
    if not kl <= merge.max_kl:  # nan is no match either
        raise GateError(
            f"the {what} model differs from the one before it by {kl:.2g} nats a token, more than "
            f"merge.max_kl ({merge.max_kl:.2g}); {_REMEDIES[what]}"
        )
    # The divergence itself goes to MLflow alone: ONNX Runtime picks its kernels by processor, and a
    # metric is an output.
    tracking.log_metrics({f"{what}_kl": kl})
    return {f"{what}_same_token": round(agreement, 2)}


_REMEDIES = {
    "merged": "`dvc repro -f sft merge`; after qlora, see that bitsandbytes quantises alike each time",
    "onnx": "set merge.onnx_precision to fp32, or merge.onnx to false to serve the merged model",
}


def check_contract(data: Path, model: Path) -> None:
    """Raise GateError unless the model folder renders the fixtures as `format` did."""
    agreed = json.loads((data / "contract.json").read_text(encoding="utf-8"))
    try:
        chat.check_contract(agreed, chat.load_tokenizer(model))
    except chat.ChatError as error:
        raise GateError(
            f"{model} breaks the contract of {data / 'contract.json'}: {error}"
        ) from None


def check_ends(model: Path, onnx: Path) -> None:
    """Raise GateError unless the export ends an answer at the tokens at which the model does."""
    generation = model / "generation_config.json"
    stated = generation if generation.is_file() else model / "config.json"
    merged, exported = (
        json.loads(file.read_text(encoding="utf-8"))
        for file in (stated, onnx / "genai_config.json")
    )
    ends = [
        {found} if isinstance(found, int) else set(found or ())
        for found in (merged.get("eos_token_id"), exported["model"].get("eos_token_id"))
    ]
    if ends[0] != ends[1]:
        raise GateError(
            f"{onnx} ends answers at the tokens {sorted(ends[1])}, and {model} at {sorted(ends[0])} "
            "(eos_token_id of genai_config.json and {stated.name}); export again with `dvc "
            "repro -f merge`, or set merge.onnx to false"
        )


if __name__ == "__main__":
    stage.main(run)
