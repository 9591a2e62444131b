"""Measure each method of sft.method on the default's data: time, memory, and what it learned.

    python benchmarks/methods.py [--steps N] [--methods A,B] [--base FOLDER] [--data FOLDER]

Each method trains in a process of its own, with the default's values, from the same CPT model on
the same rows; without --steps it trains all of sft.epochs. Methods that PEFT has for linear layers
alone, and those that have no target modules, leave the embeddings as they are. Prints one line a
method: the share of weights trained, seconds of training without what surrounds it (by the clock, and
of all threads, which a busy machine changes less), the peak of memory, and the validation loss before
and after. Needs the outputs of the stages up to cpt (`dvc repro cpt`), or the paths of another
checkout's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from tasks.lineage.compute import environment, seed
from tasks.params import EMBEDDINGS, LINEAR_ALONE, Sft, load

ROOT = Path(__file__).resolve().parents[1]
METHODS: tuple[str, ...] = get_args(Sft.model_fields["method"].annotation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, help="of training; sft.epochs otherwise")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--base", type=Path, default=Path("models/cpt"))
    parser.add_argument("--data", type=Path, default=Path("data/formatted"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measured(asked.one, asked.base, asked.data, asked.steps)))
        return
    length = f"{asked.steps} steps" if asked.steps else "whole epochs"
    print(f"{length}, {load(ROOT / 'params.yaml').sft.batch_size} rows a step")
    print(
        f"{'method':<15}{'trained':>9}{'seconds':>9}{'CPU s':>8}{'MB':>8}{'loss before':>13}{'after':>8}"
    )
    for method in asked.methods.split(","):
        found = in_a_process(method, asked)
        print(
            f"{method:<15}{found['share']:>9.2%}{found['seconds']:>9.1f}{found['cpu']:>8.1f}"
            f"{found['peak'] / 1e6:>8.0f}{found['before']:>13.4f}{found['after']:>8.4f}",
            flush=True,
        )


def in_a_process(method: str, asked: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", method]
    command += ["--base", str(asked.base), "--data", str(asked.data)]
    if asked.steps:
        command += ["--steps", str(asked.steps)]
    pins = environment(load(ROOT / "params.yaml").compute)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **pins, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(method: str, base: Path, data: Path, steps: int | None) -> dict[str, float]:
    """What one method takes and gives; memory is the most that the process held at once (RSS)."""
    import resource

    from tasks import sft
    from tasks.lineage.console import quiet
    from tasks.model import adapter, chat
    from tasks.training import examples, loop, machine, optimiser

    params = load(ROOT / "params.yaml")
    quiet()
    seed(params.compute)
    compute = machine.settle(params.compute, None)
    settings = params.sft.model_copy(update={"method": method, "validations": 1})
    if method in LINEAR_ALONE and settings.target_modules != "all-linear":
        linear = [name for name in settings.target_modules if name not in EMBEDDINGS]
        settings = settings.model_copy(update={"target_modules": linear})
    tokenizer = chat.load_tokenizer(base)
    rows: list[Any] = [
        examples.supervised_chats(examples.read_rows(data / f"{name}.jsonl"), tokenizer)
        for name in ("train", "validation")
    ]
    model = adapter.new(base, settings)
    trained, total = adapter.counts(model)
    trainer = sft._trainer(model, tokenizer, *rows, settings, compute)
    optimiser.prepare(trainer, settings)
    if steps:
        trainer.args.max_steps = steps
    before = trainer.evaluate()["eval_loss"]
    validating = clocks()
    trainer.evaluate()
    validated = training = clocks()
    with tempfile.TemporaryDirectory() as scratch:
        loop.train(trainer, method, Path(scratch) / "curve.csv", settings)
    seconds, cpu = (  # one validation of the same rows is part of the run
        (done - began) - (after - before_it)
        for done, began, after, before_it in zip(
            clocks(), training, validated, validating, strict=True
        )
    )
    return {
        "share": trained / total,
        "seconds": seconds,
        "cpu": cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "before": before,
        "after": trainer.best.loss,
    }


def clocks() -> tuple[float, float]:
    """Seconds by the clock, and of this process on all its threads."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
