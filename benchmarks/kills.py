"""Kill `dvc repro` at random moments, run it again, and see that it ends where it would have.

    python benchmarks/kills.py --kills 50

In a temporary clone with a small model and few steps.  Each round begins anew: nothing is done, the
cache is empty.  `dvc repro` is started and, at a random moment of its expected time, SIGKILL goes to
all of its processes, to `dvc` alone, or to the stage alone, in turn.  Then it is run again, at once,
while a stage whose `dvc` was killed may still be at work.  Right is: it succeeds, every output has
the hash that an undisturbed run gave it, and never were two processes writing the same stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
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
    ("validate", "min_rows"): 1,
    ("cpt", "epochs"): 1,
    ("sft", "epochs"): 1,
    ("dpo", "epochs"): 1,
    ("evaluate", "max_new_tokens"): 2,
    ("evaluate", "regression_rows"): 4,
}
ROWS = 100
"""About as many are left of each source of data/raw, evenly spread."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="three kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--project", type=Path, help="kill this project's runs, not the pipeline's")
    options = parser.parse_args()
    kills = 3 if options.quick else options.kills
    with tempfile.TemporaryDirectory(prefix="tunetrail-kills-") as folder:
        project = Path(folder) / "project"
        if options.project:
            shutil.copytree(options.project, project, symlinks=True)
        else:
            prepare(project)
        right = disturb(project, kills, random.Random(options.seed))
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
    params["merge"]["onnx"] = False
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    for path in (project / "data" / "raw").glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:: max(1, len(lines) // ROWS)]))
    (project / "dvc.lock").unlink(missing_ok=True)
    who = ["-c", "user.name=kills", "-c", "user.email=kills@example.com"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "fast"]):
        subprocess.run(["git", *who, *words], cwd=project, check=True)


def disturb(project: Path, kills: int, chance: random.Random) -> int:
    """Returns after how many of the kills all was right."""
    pristine = project.with_name("pristine")
    shutil.copytree(project, pristine, symlinks=True)
    began = time.monotonic()
    said = repro(project)
    if said.returncode:
        sys.exit(f"the undisturbed run fails:\n{said.stdout[-3000:]}")
    seconds = time.monotonic() - began
    expected = hashes(project)
    print(f"undisturbed: {seconds:.1f} s, {len(expected)} outputs", flush=True)
    right, reruns, remedies = 0, [], Counter[str]()
    for number in range(kills):
        shutil.rmtree(project)
        shutil.copytree(pristine, project, symlinks=True)
        whom = WHOM[number % len(WHOM)]
        after = chance.uniform(0.02, 0.98) * seconds
        with watched(project) as writers:
            hit = killed(project, whom, after)
            runs = recover(project, remedies)
        same = hashes(project) == expected if runs else False
        good = bool(runs) and same and not writers
        right += good
        reruns.append(runs)
        state = "right" if good else f"WRONG same={same} reruns={runs} two_writers={writers}"
        print(f"{number + 1}/{kills} {whom} after {after:.1f} s ({hit}): {state}", flush=True)
    print(f"reruns: median {statistics.median(reruns)}, most {max(reruns)}")
    print(f"remedies: {dict(remedies) or 'none'}")
    return right


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


def killed(project: Path, whom: str, after: float) -> str:
    """Start a run and kill part of it after some seconds. Returns the stage that it hit."""
    process = subprocess.Popen(
        command(),
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + after
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    at_work = stages(project)
    hit = next(iter(at_work.values()), "between stages")
    if whom == "all":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
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
    """Notes the stages whose outputs two processes wrote at once: both past the lock, neither dead."""
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for stage, count in Counter(writing(project)).items():
                if count > 1:
                    seen.append(stage)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def writing(project: Path) -> Iterator[str]:
    """For each live process that holds a stage's lock, the stage."""
    for pid, stage in stages(project).items():
        lock = f"{project.resolve()}/.tunetrail/locks/{stage}.lock"
        try:
            held = holds(pid, lock)
        except (OSError, psutil.Error):
            continue
        if held:
            yield stage


def holds(pid: int, path: str) -> bool:
    """Whether a process holds a lock on a file, from /proc/locks."""
    try:
        inode = str(Path(path).stat().st_ino)
    except FileNotFoundError:
        return False
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and words[4] == str(pid) and words[5].rpartition(":")[2] == inode:
            return True
    return False


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
