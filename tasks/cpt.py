"""Continued pretraining: the base model reads the domain's text before it learns the task."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import Metrics, Out
from tasks.model import adapter, chat, load, source
from tasks.params import Compute, Cpt
from tasks.training import causal, examples, handoff, loop


def run(base: Path, data: Path, out: Out, curve: Out, cpt: Cpt, compute: Compute) -> Metrics:
    """Train all weights, or an adapter that is then folded in, on packed text. The output is a complete
    model."""
    if not cpt.enabled:
        shutil.copytree(base, out)
        loop.write_curve([], curve)
        log.info("switched off; the base model goes on unchanged")
        return {"enabled": 0}

    quiet()
    seed(compute)
    rows = examples.read_rows(data / "corpus.jsonl")
    tokenizer = chat.load_tokenizer(base)
    model = load.load_model(base)
    blocks = examples.packed_blocks((row["text"] for row in rows), tokenizer, cpt.block_tokens)
    log.info("%d texts, %d blocks of %d tokens", len(rows), len(blocks), cpt.block_tokens)

    if cpt.method == "lora":
        model.requires_grad_(False)
        model = adapter.put_lora_on(model, cpt.lora)
    trained, total = adapter.counts(model)
    log.info("%s: %.2f%% of %d weights", cpt.method, 100 * trained / total, total)
    length = {"num_train_epochs": cpt.epochs}
    points = causal.train_causal(model, blocks, cpt, compute, length, curve)

    if cpt.method == "lora":
        fixed = blocks["input_ids"][: handoff.PROMPTS]
        learned = handoff.next_tokens(model, fixed)
        model = model.merge_and_unload()
        folded = handoff.next_tokens(model, fixed)
        handoff.check(learned, folded, handoff.FOLDED, "the folded model", _FOLDED)
    source.save(model, tokenizer, out)
    source.write_manifest(out)
    return {
        "enabled": 1,
        "texts": len(rows),
        "tokens": len(blocks) * cpt.block_tokens,
        "steps": len(points),
        "loss_first": points[0]["loss"],
        "loss_last": points[-1]["loss"],
    }


_FOLDED = (
    "a target of cpt.lora.target_modules shares its weights with another layer, as embeddings often do "
    "with the output layer: take it out, or say cpt.method: full"
)


if __name__ == "__main__":
    stage.main(run)
