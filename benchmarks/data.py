"""Measure what is claimed of the data room: a million records through ingest, validate and format.

    python benchmarks/data.py [--quick] [--json] [--rounds N]

Each stage is the command of dvc.yaml, in a work tree of its own with params of its own, so all of it
counts: starting Python, hashing what goes in and out, and telling MLflow. The peer reads the same file
with `datasets`, in turn with `ingest`. Near-duplicates have a benchmark of their own, which this calls.

A rate is rows over the seconds that a stage takes beyond those for a thousand rows: imports and
MLflow's start would otherwise make the smaller file look slow. Memory is that of all processes of a
stage at once (proportional set size, sampled). Prints one line a claim; exits 1 when one falls short.
`--quick` does it once on 20,000 rows, and says what a million would take at that rate.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import data_records
import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("ingest", "validate", "format")
MILLION, GB = 1_000_000, 10**9
WARM, SMALL, LARGE = 1_000, 100_000, MILLION
QUICK = (2_000, 20_000)
LEAST_SECONDS = 0.5
"""Less than that, over the start of a stage, is noise."""
SECONDS_BETWEEN_SAMPLES = 0.2
PEER_SHARE = 5
"""The peer gets one row in so many of the large file."""


@dataclass(frozen=True)
class Run:
    """A command from start to end; memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_pss: int
    peak_rss: int
    """Both of all processes at once."""
    max_rss: int
    """Of the largest process, as the kernel knows it."""


@dataclass(frozen=True)
class Claim:
    name: str
    measured: float
    target: float
    at_most: bool

    @property
    def holds(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    def __str__(self) -> str:
        outcome = "ok" if self.holds else "short"
        return f"claim: {self.name} measured {self.measured:.4g} target {self.target:g} {outcome}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="once, on fewer rows")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of it all")
    parser.add_argument("--rounds", type=int, default=5, help="medians are of so many runs")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    small, large = QUICK if options.quick else (SMALL, LARGE)

    with tempfile.TemporaryDirectory(prefix="tunetrail-data-") as scratch:
        trees = {rows: tree(Path(scratch) / f"{rows}", rows) for rows in (WARM, small, large)}
        run_stage(trees[WARM], "ingest")  # makes MLflow's database
        runs: dict[int, list[dict[str, Run]]] = {rows: [] for rows in trees}
        for _ in range(rounds):
            for rows, folder in trees.items():
                runs[rows].append({stage: run_stage(folder, stage) for stage in STAGES})
                tell(rows, runs[rows][-1])
        claims = [
            *judged(runs, small, large),
            Claim("rows-unaccounted", sum(map(unaccounted, trees.values())), 0, at_most=True),
        ]
        expectations = expectations_alone(Path(scratch) / "docs", large, rounds)
        print(f"  Great Expectations alone: {statistics.median(expectations):.2f} s, {large} rows")
        peer = against_peer(Path(scratch), max(large // PEER_SHARE, small), rounds)
        for claim in claims:
            print(claim, flush=True)
    duplicates = near_duplicates(options.quick)
    if options.json:
        found = {
            "claims": [{**asdict(claim), "holds": claim.holds} for claim in claims],
            "runs": {
                rows: [{stage: asdict(run) for stage, run in of.items()} for of in several]
                for rows, several in runs.items()
            },
            "great_expectations_seconds": expectations,
            "ingest_against_datasets_seconds": peer,
        }
        print(json.dumps(found))
    sys.exit(0 if duplicates and all(claim.holds for claim in claims) else 1)


def tree(folder: Path, rows: int) -> Path:
    """A work tree with the code as it is, the tiny base model, and so many records."""
    shutil.copytree(ROOT / "tasks", folder / "tasks")
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    for name in ("corpus.jsonl", "general.jsonl"):
        shutil.copy(ROOT / "data" / "raw" / name, raw / name)
    words = data_records.vocabulary([raw / "corpus.jsonl", raw / "general.jsonl"])
    write_params(folder / "params.yaml")
    if (ROOT / "models" / "base").is_dir():
        shutil.copytree(ROOT / "models" / "base", folder / "models" / "base")
    else:
        run_stage(folder, "base")
    written = data_records.write(raw / "records.jsonl", rows, words, malformed=True)
    print(f"  {written}", flush=True)
    return folder


def write_params(path: Path) -> None:
    """The shipped values, with one source, a day that a tenth of its rows come after, and the
    stages off that it has no rows for."""
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["ingest"]["sources"] = [
        {
            "file": "records.jsonl",
            "read_as": None,
            "kind": "chat",
            "role": "train",
            "map": {
                "id": "{id}",
                "time": "{received}",
                "user": "Message: {text}\nLabel:",
                "assistant": {"category": "{category}"},
            },
            "columns": data_records.COLUMNS,
        }
    ]
    params["validate"]["answer_schema"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["category"],
        "properties": {"category": {"enum": list(data_records.CLASSES)}},
    }
    params["format"]["split"] |= {
        "strategy": "time",
        "test_from": data_records.TEST_FROM.isoformat(),
        "test_share": None,
    }
    params["cpt"]["enabled"] = params["dpo"]["enabled"] = False
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def run_stage(folder: Path, stage: str) -> Run:
    """Run a stage as dvc.yaml calls it."""
    dag = YAML(typ="safe").load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    return run([sys.executable, *shlex.split(dag["stages"][stage]["cmd"])[1:]], folder)


def run(command: Sequence[str], folder: Path) -> Run:
    """Run a command to its end, watching all its processes; stop everything when it fails."""
    environment = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent / 'mlflow.db'}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    log = folder / "log.txt"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        watch = Watch(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    return Run(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_pss=watch.pss,
        peak_rss=watch.rss,
        max_rss=usage.ru_maxrss * 1024,
    )


class Watch:
    """The most memory that a process and all below it hold at once, looked at again and again."""

    def __init__(self, pid: int) -> None:
        self.pss = self.rss = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            pss = rss = 0
            for process in self._processes():
                try:
                    held = process.memory_full_info()
                except psutil.Error:  # it has ended
                    continue
                pss, rss = pss + held.pss, rss + held.rss
            self.pss, self.rss = max(self.pss, pss), max(self.rss, rss)

    def _processes(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self._pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []


def tell(rows: int, runs: dict[str, Run]) -> None:
    for stage, of in runs.items():
        print(
            f"  {stage:<8} {rows:>8} rows: {of.seconds:6.1f} s, {of.cpu_seconds:6.1f} s of CPU, "
            f"{of.peak_pss / GB:.2f} GB at once ({of.peak_rss / GB:.2f} GB with shared pages counted "
            f"for each), largest process {of.max_rss / GB:.2f} GB",
            flush=True,
        )


def judged(runs: dict[int, list[dict[str, Run]]], small: int, large: int) -> Iterator[Claim]:
    """Seconds for a million records, whether the rate is kept, and the most memory."""

    def seconds(stage: str, rows: int) -> float:
        return statistics.median(of[stage].seconds for of in runs[rows])

    def rate(stage: str, rows: int) -> float:
        beyond_start = seconds(stage, rows) - seconds(stage, WARM)
        return (rows - WARM) / max(beyond_start, LEAST_SECONDS)

    for_million = {
        stage: seconds(stage, large) + (MILLION - large) / rate(stage, large) for stage in STAGES
    }
    yield Claim("million-records-s", sum(for_million.values()), 300, at_most=True)
    yield Claim("million-records-ingest-s", for_million["ingest"], 60, at_most=True)
    yield Claim("million-records-validate-s", for_million["validate"], 20, at_most=True)
    yield Claim("million-records-format-s", for_million["format"], 200, at_most=True)
    for stage in STAGES:
        of_small, of_large = rate(stage, small), rate(stage, large)
        print(f"  {stage}: {of_small:,.0f} records a second of {small}, {of_large:,.0f} of {large}")

    def microseconds(rows: int) -> float:
        """Of a record through all three stages; one stage alone can be over before it has begun."""
        return sum(1e6 / rate(stage, rows) for stage in STAGES)

    yield Claim("rate-kept", microseconds(small) / microseconds(large), 0.8, at_most=False)
    peak = max(of.peak_pss for of_round in runs[large] for of in of_round.values())
    yield Claim("peak-memory-gb", peak / GB, 2, at_most=True)


def unaccounted(folder: Path) -> int:
    """Rows that went missing or came from nowhere, at any stage or between two (law 9)."""
    missing = 0
    metrics: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        metrics[stage] = json.loads((folder / f"models/{stage}.metrics.json").read_text())
        with (folder / f"data/rejected/{stage}.jsonl").open("rb") as file:
            listed = sum(1 for _ in file)
        found = metrics[stage]
        missing += abs(found["rows_in"] - found["rows_out"] - found["rows_rejected"])
        missing += abs(found["rows_rejected"] - listed)
    with (folder / "data/raw/records.jsonl").open("rb") as file:
        missing += abs(sum(1 for _ in file) - metrics["ingest"]["rows_in"])
    missing += abs(metrics["ingest"]["rows_out"] - metrics["validate"]["rows_in"])
    missing += abs(metrics["validate"]["rows_out"] - metrics["format"]["rows_in"])
    return missing


def expectations_alone(docs: Path, rows: int, rounds: int) -> list[float]:
    """Seconds of Great Expectations and its Data Docs, on a frame as stage validate makes it of so
    many chats; the import is not in them."""
    import numpy as np

    from tasks.dataset import expectations
    from tasks.params import load

    settings = load(ROOT / "params.yaml").validate_
    low, high = settings.prompt_chars
    answers = settings.answer_chars

    def evaluate(size: int) -> float:
        generator = np.random.default_rng(data_records.SEED)
        table = {
            "row": np.arange(size),
            "personal_data": np.zeros(size, np.int64),
            "shortest_prompt": generator.integers(low, high, size),
            "longest_prompt": generator.integers(low, high, size),
            "shortest_answer": generator.integers(*answers, size),
            "longest_answer": generator.integers(*answers, size),
            "valid_answer": np.ones(size, np.int64),
            "answer": generator.integers(0, len(data_records.CLASSES), size),
        }
        started = time.perf_counter()
        findings = expectations.evaluate({"chat-train": table}, [], None, settings, docs)
        seconds = time.perf_counter() - started
        if failed := [str(finding) for finding in findings if not finding.passed]:
            sys.exit("\n".join(failed))
        return seconds

    evaluate(settings.min_rows)  # imports
    return [evaluate(rows) for _ in range(rounds)]


def against_peer(scratch: Path, rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of `ingest` and of `datasets`, in turn, on one file without broken lines."""
    folder = tree(scratch / "peer", WARM)
    raw = folder / "data" / "raw"
    words = data_records.vocabulary([raw / "corpus.jsonl", raw / "general.jsonl"])
    data_records.write(raw / "records.jsonl", rows, words, malformed=False)
    seconds: dict[str, list[float]] = {"ingest": [], "datasets": []}
    for number in range(rounds + 1):
        ours = run_stage(folder, "ingest")
        out, cache = folder / "peer.jsonl", folder / f"cache-{number}"
        script = str(ROOT / "benchmarks" / "data_peer.py")
        peer = run(
            [sys.executable, script, str(raw / "records.jsonl"), str(out), str(cache)], folder
        )
        shutil.rmtree(cache)
        if number == 0:  # seen to be the same, and not timed
            same_conversations(folder / "data/ingested/chat.jsonl", out)
            continue
        seconds["ingest"].append(ours.seconds)
        seconds["datasets"].append(peer.seconds)
    medians = {name: statistics.median(of) for name, of in seconds.items()}
    print(
        f"  reading {rows} sound rows: ingest {medians['ingest']:.1f} s (strict: all checks, rejects, "
        f"hashes, MLflow), datasets {medians['datasets']:.1f} s (no checks)",
        flush=True,
    )
    return seconds


def same_conversations(ours: Path, peers: Path) -> None:
    """Stop when both did not make the same of the file."""
    pairs = zip(data_records.lines(ours), data_records.lines(peers), strict=True)
    for number, (left, right) in enumerate(pairs, start=1):
        one, other = json.loads(left), json.loads(right)
        if (one["id"], one["messages"]) != (other["id"], other["messages"]):
            sys.exit(f"ingest and datasets differ at line {number}: {one} and {other}")


def near_duplicates(quick: bool) -> bool:
    """Run the benchmark of near-duplicates; whether all its claims hold."""
    command = [sys.executable, str(ROOT / "benchmarks" / "near_duplicates.py")]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], check=False)
    return done.returncode == 0


if __name__ == "__main__":
    main()
