"""Measure the drift check: false alarms, what it notices, and how long it takes.

    python benchmarks/drift.py [--quick] [--only PART] [--banking77 FOLDER] [--checks N] [--json FILE]

False alarms: messages of the shipped generator, and with --banking77 those of the published train.csv,
are dealt out to two sides 500 times, 300 to 2,000 rows each, so that there is no drift; each deal is
one check.  The interval of the share is Clopper and Pearson's.  Power: the three shifts that
`python -m data.generator.arrivals` writes, read from files, against 1,000 rows.  Time: a fresh process
that reads 10,000 arrivals, compares them with 10,000 rows and writes the report; asking MLflow and the
champion's own answers are not in it.  All of it runs the functions of the check, with the values of
params.yaml.

Prints one line a claim; exits 1 when one falls short.  `--quick` makes 60 checks of 300 rows, whose
interval is wide, and one timing.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # which a process that is spawned does not have
from claims import claim  # noqa: E402

# from here on without this folder, whose data.py would hide the folder of that name
sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() != HERE)]
LIKE = "shipments.jsonl"
PARTS = ("time", "alarms", "power")
SIZES, CHECKS = (300, 500, 1000, 2000), 500
QUICK_SIZES, QUICK_CHECKS = (300,), 60
POWER_SIZES, RUNS, QUICK_RUNS = (300, 1000), 60, 10
SHIFTS = ("category", "vocabulary", "labels")
TRAINED_ROWS = 1000
LARGE = 10_000
ROUNDS = 5
REJECTED = 0.03
"""Share of rows that are rejected on either side, drawn."""
MOST_ALARMS, LEAST_POWER, MOST_SECONDS = 0.01, 0.95, 10.0


def shipments(rows: int, seed: int) -> list[dict[str, Any]]:
    """Records of messages of the shipped generator."""
    from data.generator.messages import Desk, moment, quota
    from data.generator.shipments import FIRST, TRAIN_DAYS

    class _Anything:
        def admit(self, text: str) -> bool:
            return True

    rng = Random(seed)
    desk = Desk(rng, _Anything())  # type: ignore[arg-type]
    names = quota(1000)
    made = [desk.message(moment(rng, FIRST, TRAIN_DAYS), rng.choice(names)) for _ in range(rows)]
    return [
        _record(
            f"S-{number}",
            f"Message: {one.text}\nLabel:",
            json.dumps({"category": one.category, "eta": one.eta}, separators=(",", ":")),
        )
        for number, one in enumerate(made)
    ]


def banking77(folder: Path) -> list[dict[str, Any]]:
    """Records of the published training set."""
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [_record(f"B-{at}", row["text"], row["category"]) for at, row in enumerate(rows)]


def _record(id: str, prompt: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {
        "id": id,
        "source": LIKE,
        "role": "train",
        "time": None,
        "group": None,
        "messages": turns,
    }


_pool: list[dict[str, Any]] = []


def _lend(pool: list[dict[str, Any]]) -> None:
    global _pool
    _pool = pool


def deal(order: tuple[int, int]) -> list[str]:
    """One check without drift: (rows of each side, number). Returns what fired."""
    from tasks.drift.columns import Side

    size, number = order
    rng = Random(f"{size} {number}")
    drawn = rng.sample(_pool, 2 * size)

    def side(records: Sequence[dict[str, Any]]) -> Side:
        rejected = sum(rng.random() < REJECTED for _ in range(size))
        return Side(records, size - rejected, {"wrong_type": rejected})

    return fired(side(drawn[:size]), side(drawn[size:]), number)


def notice(order: tuple[str, int, int]) -> list[str]:
    """One check of a shift: (its name, lines of the file, number). Returns what fired."""
    from tasks.drift.columns import Side

    shift, size, number = order
    records = Random(f"{shift} {size} {number}").sample(_pool, TRAINED_ROWS)
    rejected = round(TRAINED_ROWS * REJECTED)
    before = Side(records, TRAINED_ROWS, {"wrong_type": rejected})
    with tempfile.TemporaryDirectory() as folder:
        return fired(before, _arrived(shift, size, number, Path(folder)), number)


def _arrived(shift: str, size: int, number: int, folder: Path) -> Any:
    from data.generator import arrivals as examples

    incoming = folder / "incoming"
    incoming.mkdir()
    (incoming / "week.jsonl").write_bytes(examples.content(shift, size, number))
    return read(incoming)


def read(incoming: Path) -> Any:
    """The arrivals in a folder, as the check reads them."""
    from tasks.drift import arrivals
    from tasks.params import load

    params = load(ROOT / "params.yaml")
    found = arrivals.find(incoming, params.drift, set(), wait=lambda seconds: None)
    with tempfile.TemporaryDirectory(dir=incoming.parent) as folder:
        return arrivals.read(found, params, Path(folder)).read[LIKE].side()


def fired(before: Any, after: Any, seed: int) -> list[str]:
    """The names of the tests that fire."""
    from tasks.drift import comparison
    from tasks.params import load

    params = load(ROOT / "params.yaml")
    sides = {LIKE: (before, after)}
    (found,) = comparison.compare(sides, params.drift, params.format.near_duplicates, seed)
    return [test.name for test in found.tests if test.fires]


def timed(folder: Path) -> None:
    """One large check in this process: seconds of its parts and the peak of memory, as JSON."""
    begin = time.perf_counter()
    from tasks.drift import comparison, report
    from tasks.drift.columns import Side
    from tasks.params import load

    params = load(ROOT / "params.yaml")
    imported = time.perf_counter()
    after = read(folder / "incoming")
    got = time.perf_counter()
    records = [json.loads(line) for line in (folder / "before.jsonl").open(encoding="utf-8")]
    before = Side(records, len(records), {})
    loaded = time.perf_counter()
    (found,) = comparison.compare(
        {LIKE: (before, after)}, params.drift, params.format.near_duplicates, 1
    )
    compared = time.perf_counter()
    document = {
        "check": "timed", "decision": "none", "message": "no drift", "fired": False, "reasons": [],
        "champion": {"model": "shipments", "version": 1}, "left_out": [], "quality": None,
        "data": {"files": []}, "statistics": {LIKE: found.document()},
        "settings": params.drift.model_dump(),
    }  # fmt: skip
    report.render(document)
    written = time.perf_counter()
    parts = {
        "imports": imported - begin,
        "read": got - imported,
        "compare": compared - loaded,
        "report": written - compared,
        "rows": [len(before.records), len(after.records)],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(parts))


def _time_large(rounds: int) -> list[dict[str, Any]]:
    """Seconds of whole processes, with what they say of their parts."""
    from data.generator import arrivals as examples

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "incoming").mkdir()
        lines = [examples.content("none", LARGE // 20, seed) for seed in range(20)]
        (folder / "incoming" / "week.jsonl").write_bytes(b"".join(lines))
        with (folder / "before.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in shipments(LARGE, 7))
        for _ in range(rounds):
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--timed", str(folder)],
                capture_output=True, text=True, check=True, env=_environment(threads=None),
            )  # fmt: skip
            seconds = time.perf_counter() - begin
            found.append({"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])})
            print(f"  {seconds:6.2f} s: {found[-1]}", flush=True)
    return found


def _environment(threads: int | None) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    single = {} if threads is None else {"OPENBLAS_NUM_THREADS": str(threads)}
    return {**os.environ, "PYTHONPATH": path, **single}


def _false_alarms(
    name: str, pool: list[dict[str, Any]], sizes: Sequence[int], checks: int, processes: int
) -> dict[str, Any]:
    from scipy.stats import binomtest

    orders = [(sizes[at % len(sizes)], at) for at in range(checks)]
    begin = time.perf_counter()
    with _workers(pool, processes) as workers:
        found = list(workers.map(deal, orders, chunksize=5))
    alarms = sum(map(bool, found))
    interval = binomtest(alarms, checks).proportion_ci(0.95, method="exact")
    tests = Counter(test for one in found for test in one)
    by_size = Counter(size for (size, _), one in zip(orders, found, strict=True) if one)
    print(
        f"{name}: {alarms} of {checks} checks without drift fired ({alarms / checks:.2%}, 95% interval "
        f"{interval.low:.2%} to {interval.high:.2%}); by rows {dict(by_size)}, by test {dict(tests)}; "
        f"{time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    return {"pool": name, "checks": checks, "alarms": alarms, "high": interval.high}


def _power(
    pool: list[dict[str, Any]], sizes: Sequence[int], runs: int, processes: int
) -> list[dict[str, Any]]:
    told = []
    with _workers(pool, processes) as workers:
        for shift in (*SHIFTS, "unknown", "none"):
            for size in sizes:
                found = list(workers.map(notice, [(shift, size, at) for at in range(runs)]))
                share = sum(map(bool, found)) / runs
                tests = Counter(test for one in found for test in one)
                print(
                    f"{shift}, {size} rows: {share:.1%} of {runs} checks fired; {dict(tests)}",
                    flush=True,
                )
                told.append({"shift": shift, "rows": size, "runs": runs, "share": share})
    return told


def _workers(pool: list[dict[str, Any]], processes: int) -> ProcessPoolExecutor:
    """Processes of one thread each; numpy asks for threads when it is first imported."""
    os.environ.update(_environment(threads=1))
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _lend, (pool,))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="60 checks of 300 rows, one timing")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this; may be repeated"
    )
    parser.add_argument("--banking77", type=Path, help="the folder with Banking77's train.csv")
    parser.add_argument("--checks", type=int, help="simulated checks without drift, of each text")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--timed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timed:
        timed(options.timed)
        return
    quick = options.quick
    processes = len(os.sched_getaffinity(0))
    wanted = options.only or PARTS
    large = _time_large(1 if quick else ROUNDS) if "time" in wanted else []
    sizes = QUICK_SIZES if quick else SIZES
    checks = options.checks or (QUICK_CHECKS if quick else CHECKS)
    messages = shipments(2 * max(SIZES), 20261122)
    pools = {"shipments": messages} if "alarms" in wanted else {}
    if options.banking77 and pools:
        pools["banking77"] = banking77(options.banking77)
    alarms = [_false_alarms(name, pool, sizes, checks, processes) for name, pool in pools.items()]
    power_sizes, runs = (POWER_SIZES[:1], QUICK_RUNS) if quick else (POWER_SIZES, RUNS)
    power = _power(messages, power_sizes, runs, processes) if "power" in wanted else []
    if options.json:
        results: Mapping[str, Any] = {"alarms": alarms, "power": power, "time": large}
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    held = [
        claim(
            f"false alarms of {one['checks']} checks on {one['pool']}",
            one["alarms"] / one["checks"],
            MOST_ALARMS,
            at_most=True,
        )
        for one in alarms
    ]
    held += [
        claim(f"power, {one['shift']}, {one['rows']} rows", one["share"], LEAST_POWER)
        for one in power
        if one["shift"] in SHIFTS
    ]
    if large:
        seconds = statistics.median(one["seconds"] for one in large)
        name = "seconds, 10,000 rows against 10,000"
        held.append(claim(name, seconds, MOST_SECONDS, at_most=True))
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
