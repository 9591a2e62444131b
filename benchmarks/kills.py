"""Kill `dvc repro` at random moments, run it again, and see that it ends where it would have.

    python benchmarks/kills.py --kills 50 --folder /tmp/kills

In a clone with a small model and few steps.  Each round begins anew: nothing is done, the cache is
empty.  `dvc repro` is started and, at a random moment of an undisturbed run, SIGKILL goes to all of
its processes, to `dvc` alone, or to the stage alone, in turn.  Then it is run again, at once, while a
stage whose `dvc` was killed may still be at work.  Right is: it succeeds, every output has the hash
that an undisturbed run gave it, and never were two processes writing the same stage.

Each round is a line of results.jsonl in the folder.  The same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
WHOM = ("all", "dvc", "stage")
RERUNS = 3
"""A killed `dvc` can leave its lock file half-written, which it refuses until it is removed, as
docs/when-something-fails.md says. Each remedy and each further run is counted and told."""

# A model of a few thousand weights and a few steps; every stage does all that it does.
FAST = {
    ("base", "scratch", "vocab_size"): 400,
    ("base", "scratch", "hidden_size"): 64,
    ("base", "scratch", "layers"): 1,
    ("base", "scratch", "heads"): 2,
    ("base", "scratch", "intermediate_size"): 64,
    ("base", "scratch", "pretraining", "steps"): 2,
    ("compute", "threads"): 1,
    ("validate", "min_rows"): 1,
    ("cpt", "epochs"): 1,
    ("cpt", "block_tokens"): 128,
    ("cpt", "batch_size"): 16,
    ("sft", "epochs"): 1,
    ("sft", "batch_size"): 16,
    ("dpo", "epochs"): 1,
    ("dpo", "batch_size"): 16,
    ("evaluate", "max_new_tokens"): 2,
    ("evaluate", "regression_rows"): 4,
}
ROWS = {"corpus.jsonl": 12}
OTHER_ROWS = 100
"""About as many are left of each source of data/raw, evenly spread."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="three kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--project", type=Path, help="kill this project's runs, not the pipeline's")
    parser.add_argument("--folder", type=Path, help="keep all there, and go on from what is there")
    options = parser.parse_args()
    kills = 3 if options.quick else options.kills
    with tempfile.TemporaryDirectory(prefix="tunetrail-kills-") as temporary:
        folder = options.folder.resolve() if options.folder else Path(temporary)
        project = folder / "project"
        if not (folder / "pristine").exists():
            shutil.rmtree(project, ignore_errors=True)
            if options.project:
                shutil.copytree(options.project, project, symlinks=True)
            else:
                prepare(project)
        right = disturb(project, kills, options.seed)
    verdict = "ok" if right == kills else "short"
    print(f"claim: kills_survived measured {right} target {kills} {verdict}")
    sys.exit(right != kills)


def prepare(project: Path) -> None:
    """The tracked files and the new ones, with the fast values, committed anew."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, project / name)
    yaml = YAML()
    params = yaml.load((project / "params.yaml").read_text(encoding="utf-8"))
    for (*path, key), value in FAST.items():
        section = params
        for part in path:
            section = section[part]
        section[key] = value
    for gate in params["evaluate"]["gates"]:
        params["evaluate"]["gates"][gate] = 0.0
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    for source in (project / "data" / "raw").glob("*.jsonl"):
        lines = source.read_bytes().splitlines(keepends=True)
        wanted = ROWS.get(source.name, OTHER_ROWS)
        source.write_bytes(b"".join(lines[:: max(1, len(lines) // wanted)]))
    (project / "dvc.lock").unlink(missing_ok=True)
    who = ["-c", "user.name=kills", "-c", "user.email=kills@example.com"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "fast"]):
        subprocess.run(["git", *who, *words], cwd=project, check=True)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed."""

    seconds: float
    said: list[tuple[float, str]]
    """When `dvc` began a stage or wrote its lock file, in seconds from the start, and its line."""
    hashes: dict[str, str]


@dataclass(frozen=True)
class Round:
    """A run that was killed, and what became of it."""

    number: int
    whom: str
    behind: str
    """The last line of `dvc` that was waited for."""
    after: float
    """Seconds from that line to the kill, at the pace of the undisturbed run."""
    hit: str
    runs: int
    """Until one succeeded; 0 when none did."""
    same: bool
    two_writers: list[str]
    remedies: dict[str, int]
    seconds: float

    @property
    def right(self) -> bool:
        return bool(self.runs) and self.same and not self.two_writers


def disturb(project: Path, kills: int, seed: int) -> int:
    """Returns after how many of the kills all was right."""
    pristine = project.with_name("pristine")
    if not pristine.exists():
        beside = project.with_name("pristine.partial")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(project, beside, symlinks=True)
        beside.rename(pristine)
    undisturbed = _undisturbed(project, pristine)
    results = project.with_name("results.jsonl")
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rounds = {done.number: done for done in (Round(**json.loads(line)) for line in lines)}
    for number in range(kills):
        if number not in rounds:
            rounds[number] = done = _round(project, pristine, undisturbed, number, seed)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(done)) + "\n")
            state = "right" if done.right else f"WRONG {done}"
            print(
                f"{number + 1}/{kills} {done.whom}, {done.after:.1f} s behind {done.behind!r} "
                f"({done.hit}): {state}, {done.runs} reruns, {done.seconds:.0f} s",
                flush=True,
            )
    counted = [rounds[number] for number in range(kills)]
    reruns = [done.runs for done in counted]
    remedies = sum((Counter(done.remedies) for done in counted), Counter[str]())
    print(f"reruns: median {statistics.median(reruns)}, most {max(reruns)}")
    print(f"remedies: {dict(remedies) or 'none'}")
    print(f"stages hit: {dict(Counter(done.hit for done in counted))}")
    return sum(done.right for done in counted)


def _undisturbed(project: Path, pristine: Path) -> Undisturbed:
    kept = project.with_name("undisturbed.json")
    if kept.exists():
        return Undisturbed(**json.loads(kept.read_text(encoding="utf-8")))
    _anew(project, pristine)
    log = project.with_name("undisturbed.log")
    said: list[tuple[float, str]] = []
    began = time.monotonic()
    process = start(project, log)
    while process.poll() is None:
        said += [(time.monotonic() - began, line) for line in _events(log)[len(said) :]]
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"the undisturbed run fails:\n{log.read_text(errors='replace')[-3000:]}")
    found = Undisturbed(time.monotonic() - began, said, hashes(project))
    kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    print(f"undisturbed: {found.seconds:.1f} s, {len(found.hashes)} outputs", flush=True)
    return found


def _round(
    project: Path, pristine: Path, undisturbed: Undisturbed, number: int, seed: int
) -> Round:
    """The moment is taken from the undisturbed run, and found by what `dvc` says and by the pace so
    far, since the machine is not equally fast at all times."""
    _anew(project, pristine)
    whom = WHOM[number % len(WHOM)]
    moment = random.Random(f"{seed} {number}").uniform(0, undisturbed.seconds)
    began = time.monotonic()
    lines = [(0.0, ""), *undisturbed.said]
    place = max(index for index, (at, _) in enumerate(lines) if at <= moment)
    at, behind = lines[place]
    remedies = Counter[str]()
    with watched(project) as writers:
        hit = killed(project, whom, place, at, moment - at)
        runs = recover(project, remedies)
    return Round(
        number=number,
        whom=whom,
        behind=behind,
        after=moment - at,
        hit=hit,
        runs=runs,
        same=bool(runs) and hashes(project) == undisturbed.hashes,
        two_writers=writers,
        remedies=dict(remedies),
        seconds=time.monotonic() - began,
    )


def _anew(project: Path, pristine: Path) -> None:
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(pristine, project, symlinks=True)


def _events(log: Path) -> list[str]:
    """The lines in which `dvc` says that it begins a stage or writes its lock file."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return re.findall(
        r"^(?:Running stage|Generating lock file|Updating lock file) '.*'", text, re.M
    )


def repro(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(),
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def command() -> list[str]:
    return [sys.executable, "-m", "dvc", "repro"]


def environment() -> dict[str, str]:
    """MLflow is out of reach: its courier would take most of the time."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "DVC_NO_ANALYTICS": "1", "PATH": path}
    return {**os.environ, **told, "PYTHONPATH": "", "DO_NOT_TRACK": "1"}


def start(project: Path, log: Path) -> subprocess.Popen[bytes]:
    """A run in a session of its own. It writes to a file: what lives on when `dvc` is killed would
    die of a closed pipe."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command(),
            cwd=project,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def killed(project: Path, whom: str, events: int, expected: float, after: float) -> str:
    """Start a run and kill part of it, some seconds after so many events. Returns the stage hit.

    Args:
        expected: when the last of these events was in the undisturbed run, in seconds.
        after: seconds at the pace of the undisturbed run.
    """
    log = project.with_name("killed.log")
    began = time.monotonic()
    process = start(project, log)
    while process.poll() is None and len(_events(log)) < events:
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after * ((time.monotonic() - began) / expected if events else 1))
    if process.poll() is not None:
        return "nothing: the run was over"
    at_work = stages(project)
    hit = next(iter(at_work.values()), "between stages")
    if whom == "all":
        couriers = []
        with contextlib.suppress(psutil.NoSuchProcess):
            couriers = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in couriers:  # they are in sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    elif whom == "dvc":
        process.kill()
    else:
        for pid in at_work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    return hit


def recover(project: Path, remedies: Counter[str]) -> int:
    """Run until it succeeds. Returns how many runs it took; 0 when it never did."""
    for run in range(1, RERUNS + 1):
        said = repro(project)
        if said.returncode == 0:
            return run
        if "RWLock-file" in said.stdout:
            remedies["rm .dvc/tmp/rwlock"] += 1
            (project / ".dvc/tmp/rwlock").unlink(missing_ok=True)
        elif "dvc.lock" in said.stdout and "corrupt" in said.stdout.lower():
            remedies["rm dvc.lock"] += 1
            (project / "dvc.lock").unlink()
        else:
            remedies["ran again"] += 1
        print(f"  run {run} ended with {said.returncode}: {said.stdout.strip()[-300:]}", flush=True)
    return 0


@contextlib.contextmanager
def watched(project: Path) -> Iterator[list[str]]:
    """Notes the stages that two processes worked on at once, both past the stage's lock."""
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            by_stage = writers(project)
            seen.extend(stage for stage, pids in by_stage.items() if len(pids) > 1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def writers(project: Path) -> dict[str, set[int]]:
    """The processes that work on each stage's outputs.

    A stage opens its spool file once it is past its lock, and holds a lock on that file until its
    outputs are in place; each has a file of its own, so that two are seen.
    """
    stage_of = {}
    for path in (project / ".tunetrail" / "spool").glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            stage_of[str(path.stat().st_ino)] = path.name.split("-")[1]
    found: dict[str, set[int]] = {}
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        inode = words[-3].rpartition(":")[2]
        if "->" not in words and inode in stage_of:
            pid = int(words[-4])
            with contextlib.suppress(psutil.Error):
                if "tasks.lineage.courier" not in psutil.Process(pid).cmdline():
                    found.setdefault(stage_of[inode], set()).add(pid)
    return found


def stages(project: Path) -> dict[int, str]:
    """The processes that run a stage of this project, by number."""
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "-m" not in words[1:2] or not words[2].startswith("tasks."):
                continue
            if words[2].startswith("tasks.lineage.") or process.cwd() != str(project.resolve()):
                continue
            found[process.pid] = words[2].removeprefix("tasks.")
        except (psutil.Error, IndexError):
            continue
    return found


def hashes(project: Path) -> dict[str, str]:
    """md5 of every output, by path, as dvc.lock has it, and as it is on disk."""
    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    from tasks.lineage.hashes import dvc_md5

    text = (project / "dvc.lock").read_text(encoding="utf-8")
    locked = YAML(typ="safe").load(text)["stages"]
    found = {}
    for stage in locked.values():
        for out in stage.get("outs", []):
            place = project / out["path"]
            on_disk = dvc_md5(place) if place.exists() else "missing"
            found[out["path"]] = json.dumps([out["md5"], on_disk])
    return found


if __name__ == "__main__":
    main()
