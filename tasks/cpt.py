"""Continued pretraining: the base model reads the domain's text before it learns the task."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import Metrics, Out, StageError
from tasks.model import adapter, chat, handoff, load, source
from tasks.params import Compute, Cpt
from tasks.training import beforehand, causal, examples, loop, machine, memory

Text = TypeVar("Text")


def run(base: Path, corpus: Path, out: Out, curve: Out, cpt: Cpt, compute: Compute) -> Metrics:
    """Train all weights, or an adapter that is then folded in, on packed text. The output is a complete
    model."""
    if not cpt.enabled:
        shutil.copytree(base, out)
        loop.write_curve([], curve)
        log.info("switched off; the base model goes on unchanged")
        return {"enabled": 0}

    quiet()
    seed(compute)
    beforehand.check_model(base)
    beforehand.check_block(base, cpt.block_tokens)
    if cpt.method == "lora":
        beforehand.check_targets(base, cpt.lora.target_modules, "cpt.lora.target_modules")
    rows = examples.read_rows(corpus)
    train, held_out = split([row["text"] for row in rows], cpt.validation_share, compute.seed)
    tokenizer = chat.load_tokenizer(base)
    blocks = examples.packed_blocks(train, tokenizer, cpt.block_tokens)
    validation = examples.packed_blocks(held_out, tokenizer, cpt.block_tokens) if held_out else None
    longest = len(blocks[0]["input_ids"])
    compute = machine.settle(compute, _work(base, cpt, longest))
    model = load.load_model(base)
    log.info("%d texts, %d blocks of %d tokens", len(train), len(blocks), longest)

    if cpt.method == "lora":
        model.requires_grad_(False)
        model = adapter.put_lora_on(model, cpt.lora)
    trained, total = adapter.counts(model)
    log.info("%s: %.2f%% of %d weights", cpt.method, 100 * trained / total, total)
    length = {"num_train_epochs": cpt.epochs}
    points, best = causal.train_causal(model, blocks, cpt, compute, length, curve, validation)

    if cpt.method == "lora":
        fixed = blocks["input_ids"][: handoff.PROMPTS]
        learned = handoff.next_tokens(model, fixed)
        model = model.merge_and_unload()
        folded = handoff.next_tokens(model, fixed)
        handoff.check(learned, folded, handoff.FOLDED, "the folded model", _FOLDED)
    handoff.write(model, blocks["input_ids"], compute.dtype, out)
    source.save(model, tokenizer, out)
    source.write_manifest(out)
    measured: Metrics = {"validation_loss": best.loss, "best_step": best.step} if validation else {}
    return {
        "enabled": 1,
        "texts": len(train),
        "texts_held_out": len(held_out),
        "tokens": len(blocks) * longest,
        "steps": len(points),
        "loss_first": points[0]["loss"],
        "loss_last": points[-1]["loss"],
        **measured,
    }


_FOLDED = (
    "a target of cpt.lora.target_modules shares its weights with another layer, as embeddings often do "
    "with the output layer: take it out, or say cpt.method: full"
)


def _work(base: Path, cpt: Cpt, longest: int) -> memory.Work:
    lora = memory.lora_weights(base, cpt.lora.r, cpt.lora.target_modules)
    return memory.Work(
        stage="cpt",
        model=base,
        trained=None if cpt.method == "full" else lora,
        quantised=False,
        sequences=cpt.batch_size,
        longest=longest,
        adapter=lora,
    )


def split(texts: Sequence[Text], share: float, seed: int) -> tuple[list[Text], list[Text]]:
    """Texts to train on and texts held out, whole ones, both in their order.

    Raises:
        StageError: when a share is to be held out of too few texts to leave some on either side.
    """
    if not share:
        return list(texts), []
    count = max(1, round(share * len(texts)))
    if count >= len(texts):
        raise StageError(
            f"cpt.validation_share: {share} of {len(texts)} texts leaves none to train on; lower it, or "
            "set it to 0.0 to train without validation"
        )
    held_out = set(random.Random(seed).sample(range(len(texts)), count))
    train = [text for place, text in enumerate(texts) if place not in held_out]
    return train, [texts[place] for place in sorted(held_out)]


if __name__ == "__main__":
    stage.main(run)
