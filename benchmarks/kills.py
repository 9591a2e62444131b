"""Kill `dvc repro` at random moments, run it again, and see that it ends where it would have.

    python benchmarks/kills.py --kills 50 --folder /tmp/kills

In a clone with a small model and few steps.  Each round begins anew: nothing is done, the cache is
empty.  `dvc repro` is started and, at a random moment of an undisturbed run, SIGKILL goes to all of
its processes, to `dvc` alone, or to the stage alone, in turn.  Then it is run again, at once, while a
stage whose `dvc` was killed may still be at work, and is killed again at a later moment, and so on;
the last rerun of a round is left alone.  Right is: it succeeds, every output has the hash that an
undisturbed run gave it, and never were two processes writing the same stage.

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
KILLS_A_ROUND = 5
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
class Kill:
    """One SIGKILL."""

    whom: str
    behind: str
    """The last line of `dvc` that was waited for."""
    after: float
    """Seconds from that line to the kill."""
    hit: str


@dataclass(frozen=True)
class Round:
    """A run that was killed, run again, killed again..., and what became of it."""

    number: int
    kills: list[Kill]
    runs: int
    """Behind the last kill, until one succeeded; 0 when none did."""
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
    rounds = [
        Round(**{**line, "kills": [Kill(**kill) for kill in line["kills"]]})
        for line in map(json.loads, lines)
    ]
    while (before := sum(len(done.kills) for done in rounds)) < kills:
        numbers = range(before, min(kills, before + KILLS_A_ROUND))
        done = _round(project, pristine, undisturbed, len(rounds), numbers, seed)
        rounds.append(done)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(done)) + "\n")
        for number, kill in zip(numbers, done.kills, strict=True):
            print(
                f"{number + 1}/{kills} {kill.whom}, {kill.after:.1f} s behind {kill.behind!r} "
                f"({kill.hit})"
            )
        state = "right" if done.right else f"WRONG {done}"
        print(f"  {state}, {done.runs} runs to the end, {done.seconds:.0f} s", flush=True)
    remedies = sum((Counter(done.remedies) for done in rounds), Counter[str]())
    hit = Counter(kill.hit for done in rounds for kill in done.kills)
    print(
        f"runs to the end: most {max(done.runs for done in rounds)} behind the last kill of a round"
    )
    print(f"remedies: {dict(remedies) or 'none'}")
    print(f"hit: {dict(hit)}")
    return sum(len(done.kills) for done in rounds if done.right)


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
    project: Path,
    pristine: Path,
    undisturbed: Undisturbed,
    number: int,
    kills: range,
    seed: int,
) -> Round:
    """The moments are taken from the undisturbed run, and found by what `dvc` says, since the machine
    is not equally fast at all times."""
    _anew(project, pristine)
    draw = random.Random(f"{seed} {number}")
    moments = sorted(draw.uniform(0, undisturbed.seconds) for _ in kills)
    lines = [(0.0, ""), *undisturbed.said]
    began = time.monotonic()
    remedies = Counter[str]()
    done = []
    with watched(project) as writers:
        for kill, moment in zip(kills, moments, strict=True):
            place = max(index for index, (at, _) in enumerate(lines) if at <= moment)
            at, behind = lines[place]
            whom = WHOM[kill % len(WHOM)]
            hit = killed(project, whom, [line for _, line in lines], place, moment - at, remedies)
            done.append(Kill(whom, behind, moment - at, hit))
        runs = recover(project, remedies)
    return Round(
        number=number,
        kills=done,
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


def killed(
    project: Path, whom: str, lines: list[str], place: int, after: float, remedies: Counter[str]
) -> str:
    """Start a run and kill part of it, some seconds after it came to a place. Returns the stage hit.

    Args:
        lines: what an undisturbed run says.
        place: in these lines; a rerun that skips it is killed as long after the next.
        after: seconds.
        remedies: grows when the run cannot start, since the kill before broke something of DVC's.
    """
    log = project.with_name("killed.log")
    for _ in range(RERUNS):
        process = start(project, log)
        while process.poll() is None and _place(_events(log), lines) < place:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        if process.poll() is None:
            return _kill(project, process, whom)
        if process.returncode == 0:
            return "nothing: the run was over"
        remedy(project, log.read_text(encoding="utf-8", errors="replace"), remedies)
    return "nothing: no run began"


def _place(said: list[str], lines: list[str]) -> int:
    """How far a run has come, in the lines of an undisturbed one. It may skip what was done before,
    and begin the lock file where the other updated it."""
    begun = [line for line in said if line in lines and line.startswith("Running")]
    if not begun:
        return 0
    return lines.index(begun[-1]) + (said[-1] != begun[-1])


def _kill(project: Path, process: subprocess.Popen[bytes], whom: str) -> str:
    at_work = stages(project)
    if whom == "all":
        couriers = []
        with contextlib.suppress(psutil.NoSuchProcess):
            couriers = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in couriers:  # they are in sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    elif whom == "dvc" or not at_work:
        process.kill()
    else:
        for pid in at_work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    return next(iter(at_work.values()), "between stages")


def recover(project: Path, remedies: Counter[str]) -> int:
    """Run until it succeeds. Returns how many runs it took; 0 when it never did."""
    for run in range(1, RERUNS + 1):
        said = repro(project)
        if said.returncode == 0:
            return run
        remedy(project, said.stdout, remedies)
        print(f"  run {run} ended with {said.returncode}: {said.stdout.strip()[-300:]}", flush=True)
    return 0


def remedy(project: Path, said: str, remedies: Counter[str]) -> None:
    """Do what docs/when-something-fails.md says of a run that ended so, and count it."""
    if "RWLock-file" in said:
        remedies["rm .dvc/tmp/rwlock"] += 1
        (project / ".dvc/tmp/rwlock").unlink(missing_ok=True)
    elif "dvc.lock" in said and ("corrupt" in said.lower() or "validation failed" in said):
        remedies["rm dvc.lock"] += 1
        (project / "dvc.lock").unlink()
    else:
        remedies["ran again"] += 1


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
