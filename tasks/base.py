"""Bring the base model: built here, from a hub, from a folder or from a GGUF file."""

from __future__ import annotations

from pathlib import Path

from tasks.lineage import stage
from tasks.lineage.compute import seed
from tasks.lineage.console import log, quiet
from tasks.lineage.stage import Metrics, Out, StageError
from tasks.model import chat, scratch, source
from tasks.params import Base, Compute


def run(raw: Path, out: Out, base: Base, compute: Compute) -> Metrics:
    """Write a complete model folder: safetensors, tokenizer, chat template, manifest of sha256."""
    quiet()
    if base.source == "scratch":
        build(raw, out, base, compute)
    elif base.source == "hub":
        source.from_hub(base, out)
    elif base.source == "local":
        source.from_local(Path(str(base.local.path)), out)
    else:
        source.from_gguf(base, out)
    if base.chat_template is not None:
        source.use_template(Path(base.chat_template), out)
    chat.load_tokenizer(out)  # a model without a chat template is of no use further on
    manifest = source.write_manifest(out)
    size = sum((out / name).stat().st_size for name in manifest)
    log.info("base model from %s: %d files, %.1f MB", base.source, len(manifest), size / 1e6)
    return {}


def build(raw: Path, out: Path, base: Base, compute: Compute) -> None:
    """Build the scratch model: tokenizer and weights from the shipped text."""
    from tasks.training import machine
    from tasks.training.causal import train_causal
    from tasks.training.examples import packed_blocks

    settings = base.scratch
    missing = [name for name in settings.text if not (raw / name).is_file()]
    if missing:
        raise StageError(f"base.scratch.text: {', '.join(missing)} not found below {raw}")
    seed(compute)
    rows = scratch.read_rows(raw, settings.text)
    tokenizer = scratch.build_tokenizer(map(scratch.plain, rows), settings)
    model = scratch.build_model(tokenizer, settings)
    if settings.pretraining.steps:
        compute = machine.settle(compute, None)
        texts = (scratch.as_text(row, tokenizer) for row in rows)
        blocks = packed_blocks(texts, tokenizer, settings.context // 2)
        length = {"max_steps": settings.pretraining.steps}
        train_causal(model, blocks, settings.pretraining, compute, length, curve=None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("a Llama of %.2f million parameters, %d tokens", parameters / 1e6, len(tokenizer))
    source.save(model, tokenizer, out)


if __name__ == "__main__":
    stage.main(run)
