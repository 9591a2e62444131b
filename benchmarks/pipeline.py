"""Measure what the README claims of the whole pipeline, in clones of this repository.

    python benchmarks/pipeline.py [--quick]

Each clean run is a fresh clone with an empty cache and an empty home; an unchanged dvc.lock there says
that all outs are the same bytes. Prints one line a claim; exits 1 when one falls short. `--quick` makes
one clean run instead of five.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from claims import claim

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one clean run instead of five")
    rounds = 1 if parser.parse_args().quick else 5
    claims: list[bool] = []
    with tempfile.TemporaryDirectory() as scratch:
        clones = [clone(Path(scratch) / f"clone-{number}") for number in range(rounds)]
        cold = []
        for folder in clones:
            cold.append(timed(folder, "dvc", "repro"))
            print(f"  clean run: {cold[-1].seconds:.1f} s", flush=True)
        warm = [timed(clones[0], "dvc", "repro").seconds for _ in range(5)]
        seconds = statistics.median(run.seconds for run in cold)
        memory = max(run.peak_bytes for run in cold) / 2**30
        evaluate = timed(clones[0], "dvc", "repro", "--force", "--single-item", "evaluate").seconds
        metrics = json.loads((clones[0] / "models/evaluate.metrics.json").read_text())
        final = metrics["candidates"]["dpo"]["test"]
        locks = [git(folder, "diff", "--exit-code", "dvc.lock") == 0 for folder in clones]

        claims += [
            claim("clean-repro-s", seconds, 240, at_most=True),
            claim("second-repro-s", statistics.median(warm), 3, at_most=True),
            claim("evaluate-s", evaluate, 60, at_most=True),
            claim("peak-memory-gib", memory, 4, at_most=True),
            claim("json-valid", final["json_valid"]["value"], 0.99),
            claim("category-accuracy", final["category_accuracy"]["value"], 0.90),
            claim("clones-that-leave-dvc-lock-clean", sum(locks) / len(locks), 1),
        ]
    sys.exit(0 if all(claims) else 1)


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def git(folder: Path, *arguments: str) -> int:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
    return done.returncode


def timed(folder: Path, *command: str) -> Measured:
    """Wall time, and the most memory that the process and all below it held at once (RSS)."""
    home = folder.parent / f"{folder.name}-home"
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    done = threading.Event()
    peaks = [0]
    watcher = threading.Thread(target=watch, args=(process.pid, done, peaks))
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if code:
        sys.exit(f"{' '.join(command)} failed with {code} in {folder}")
    return Measured(seconds, peaks[0])


def watch(pid: int, done: threading.Event, peaks: list[int]) -> None:
    while not done.wait(0.5):
        total = 0
        try:
            top = psutil.Process(pid)
            for process in [top, *top.children(recursive=True)]:
                total += process.memory_info().rss
        except psutil.Error:
            continue
        peaks[0] = max(peaks[0], total)


if __name__ == "__main__":
    main()
