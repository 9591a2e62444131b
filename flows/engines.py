"""Which generation engine is the fastest on a model, measured where it will run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import profiles
from tasks.lineage.compute import environment, seed
from tasks.lineage.stage import FAULT, StageError
from tasks.model import engines
from tasks.params import load

MODEL, ONNX = Path("models/merged"), Path("models/onnx")
TEST = Path("data/formatted/test.jsonl")
REFERENCE = "generate"
"""transformers' own loop, asked one prompt at a time: what all others are compared with."""
RUNS = 3
"""Of each engine; the median counts."""


@dataclass(frozen=True)
class Measured:
    """What one engine did with the prompts, or why it could not."""

    name: str
    tokens_a_second: float = 0.0
    load_seconds: float = 0.0
    answers: tuple[tuple[int, ...], ...] = ()
    why_not: str | None = None


Run = Callable[[dict[str, Any]], dict[str, Any]]


def measure(
    model: Path, onnx: Path | None, rows: int, tell: Callable[[str], None], run: Run | None = None
) -> list[Measured]:
    """Ask every engine the first prompts of the test; the first entry is the reference.

    Each runs in a process of its own, under the environment of the stages.

    Args:
        model: a folder in Hugging Face format.
        onnx: what was exported from it, if anything was.
        run: what measures one engine; another process by default.

    Raises:
        StageError: when there is no model, no test, or the reference itself fails.
    """
    if not (model / "config.json").is_file():
        raise StageError(
            f"{model} holds no model in Hugging Face format (no config.json); "
            "`tunetrail run` makes models/merged, or name a folder: --model FOLDER"
        )
    if not TEST.is_file() or not TEST.stat().st_size:
        raise StageError(f"{TEST} has no rows to ask; `tunetrail run format` makes it")
    params = load(Path("params.yaml"))
    order = {
        "model": str(model),
        "onnx": str(onnx) if onnx else None,
        "rows": rows,
        "new": params.evaluate.max_new_tokens,
        "threads": params.compute.threads,
        "test": str(TEST),
    }
    run = run or _in_a_process(environment(params.compute))
    found = []
    for name in (REFERENCE, *engines.NAMES):
        tell(f"measuring {name}")
        done = run({**order, "engine": name})
        found.append(
            Measured(name, why_not=done["why_not"])
            if "why_not" in done
            else Measured(
                name,
                done["tokens_a_second"],
                done["load_seconds"],
                tuple(tuple(answer) for answer in done["answers"]),
            )
        )
        if name == REFERENCE and found[0].why_not:
            raise StageError(f"{model} gives no answers: {found[0].why_not}")
    return found


def same(one: Measured, reference: Measured) -> int:
    """To how many prompts an engine gives the reference's tokens."""
    return sum(a == b for a, b in zip(one.answers, reference.answers, strict=True))


def best(found: Sequence[Measured]) -> Measured:
    """The fastest of those engines that give the most answers as the reference does."""
    reference, *others = found
    able = [one for one in others if one.why_not is None]
    if not able:
        raise StageError("no engine could answer; the table says why")
    return max(able, key=lambda one: (same(one, reference), one.tokens_a_second))


def table(found: Sequence[Measured]) -> list[str]:
    """Lines for a terminal."""
    reference = found[0]
    lines = [f"{'engine':<13}{'tokens/s':>10}{'same answers':>15}{'load, s':>9}"]
    for one in found:
        if one.why_not is not None:
            lines.append(f"{one.name:<13}{one.why_not}")
            continue
        share = f"{same(one, reference)} of {len(reference.answers)}"
        speed = f"{one.tokens_a_second:,.0f}"
        lines.append(f"{one.name:<13}{speed:>10}{share:>15}{one.load_seconds:>9.1f}")
    return lines


def write(name: str, params: Path) -> list[profiles.Change]:
    """Set evaluate.engine in a params file, its comments and layout kept."""
    return profiles.lay(f"evaluate:\n  engine: {name}\n", Path("tunetrail engines"), params)


def _in_a_process(pins: dict[str, str]) -> Run:
    def run(order: dict[str, Any]) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "flows.engines"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **pins, "TRANSFORMERS_VERBOSITY": "error"},
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"why_not": f"failed: {said[-1][:200]}"}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


def measure_one(order: dict[str, Any]) -> dict[str, Any]:
    """Load one engine, answer, and say how long that took."""
    from tasks.model import chat

    model = Path(order["model"])
    with Path(order["test"]).open(encoding="utf-8") as lines:
        turns = [
            json.loads(line)["messages"][:-1]
            for line, _ in zip(lines, range(order["rows"]), strict=False)
        ]
    rendered = chat.render_prompts(turns, chat.load_tokenizer(model))
    prompts = chat.all_or_raise(rendered)
    new = order["new"]
    start = time.perf_counter()
    try:
        generate = _generate(order, model)
    except engines.Unavailable as reason:
        return {"why_not": str(reason).partition(": ")[2].partition(";")[0]}
    loaded = time.perf_counter() - start
    generate(prompts[:1], new)
    seconds = []
    for _ in range(1 if order["engine"] == REFERENCE else RUNS):
        start = time.perf_counter()
        answers = generate(prompts, new)
        seconds.append(time.perf_counter() - start)
    tokens = sum(len(answer) + 1 for answer in answers)  # the end is a token too
    return {
        "tokens_a_second": tokens / statistics.median(seconds),
        "load_seconds": loaded,
        "answers": answers,
    }


def _generate(
    order: dict[str, Any], model: Path
) -> Callable[[Sequence[engines.Ids], int], list[engines.Ids]]:
    def ignore(done: int) -> None:
        pass

    if order["engine"] == REFERENCE:
        plain = engines.TransformersEngine(model, order["threads"])
        return lambda prompts, new: plain.plainly(prompts, new, ignore, at_once=1)
    onnx = Path(order["onnx"]) if order["onnx"] else None
    engine = engines.load(order["engine"], model, onnx, order["threads"])
    return lambda prompts, new: engine.generate(prompts, new, ignore)


if __name__ == "__main__":
    try:
        seed(load(Path("params.yaml")).compute)  # and multiply as the stages do
        print(json.dumps(measure_one(json.load(sys.stdin))))
    except StageError as error:
        print(error, file=sys.stderr)
        sys.exit(FAULT)
