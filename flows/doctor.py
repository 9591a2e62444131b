"""What is wrong with this work tree, its stores and this machine, each with its remedy.

Nothing is changed.  `check` finds what would stop a run; this finds what would spoil one, or has
been spoiled: it reads every object of the cache, and asks MLflow and the remotes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import dvc_storage
from flows.dvc_dag import RWLOCK
from flows.dvc_storage import Remote
from flows.preflight import LEAST_FREE_BYTES, LOCK
from tasks.lineage import courier, hashes, packages, promotion, stage, store
from tasks.lineage.stage import STATE, StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


def examine(tell: Tell) -> list[Finding]:
    """Look at everything. `tell` gets a line about each check before it begins."""
    found: list[Finding] = []
    for title, check in CHECKS.items():
        tell(title)
        found += check()
    return found


def _cache() -> Iterator[Finding]:
    where = dvc_storage.storage()
    for path in _damaged(where.objects):
        remedy = f"`rm -f {path}`, then `dvc fetch`, or `dvc repro` where no remote has it"
        yield Finding("its content is not what its name says", str(path), remedy)


def _damaged(objects: Path) -> Iterator[Path]:
    """The objects whose md5 is not their name.  DVC trusts an object whose time has not changed, so
    every byte is read here."""
    for path in sorted(objects.glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if len(name.removesuffix(".dir")) != 32:
            continue  # what a process that is still at work writes, or died over
        if hashes.file_hash(path, "md5") != name.removesuffix(".dir"):
            yield path


def _remotes() -> Iterator[Finding]:
    for remote in dvc_storage.storage().remotes:
        name = f"remote {remote.name}"
        if not remote.verified:
            remedy = f"`dvc remote modify {remote.name} verify true`"
            yield Finding("DVC does not hash what comes from there", name, remedy)
        if remote.folder is not None and not remote.folder.is_dir():
            yield Finding(
                f"{remote.folder} does not exist", name, "`dvc push` makes it, or mount it"
            )
        elif why := dvc_storage.why_unreachable(remote.name):
            remedy = f"`dvc remote modify {remote.name} url ADDRESS`, or mend the connection"
            yield Finding(f"out of reach ({why})", name, remedy)
        else:
            if missing := dvc_storage.not_in(remote):
                count = f"{len(missing)} object{'s' if len(missing) > 1 else ''}"
                text = f"{count} of this work tree not there: {', '.join(missing[:3])}"
                yield Finding(text, name, _pushed_anew(remote))
            if remote.folder is not None:
                yield from _damaged_remotely(remote.folder)


def _damaged_remotely(remote: Path) -> Iterator[Finding]:
    for path in _damaged(dvc_storage.objects_of(remote)):
        yield Finding("its content is not what its name says", str(path), _restored(path))


def _pushed_anew(remote: Remote) -> str:
    """`dvc push` believes that where the list of a folder is, the folder's files are too."""
    if remote.folder is None:
        return f"`dvc push --remote {remote.name}`"
    kept, there = dvc_storage.storage().objects, dvc_storage.objects_of(remote.folder)
    return f"`mkdir -p {there}`, then `cp -rn {kept}/. {there}`"


def _restored(path: Path) -> str:
    """What puts back an object of a remote.  `dvc push` would not: it believes its own note of what
    it pushed before."""
    name = path.parent.name + path.name
    kept = dvc_storage.object_path(dvc_storage.storage().cache, name)
    if kept.is_file() and hashes.file_hash(kept, "md5") == name.removesuffix(".dir"):
        return f"`cp -f {kept} {path}`"
    return "`tunetrail doctor` in a clone whose cache has it whole says how to put it back"


def _dvc_files() -> Iterator[Finding]:
    lock = Path("dvc.lock")
    if lock.exists():
        try:
            content = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))
            # DVC empties it before it writes
            whole = isinstance(content, dict) and isinstance(content.get("stages", {}), dict)
            whole = whole and "schema" in content
        except (YAMLError, UnicodeDecodeError):
            whole = False
        if not whole:
            remedy = f"`git checkout {lock}`, then `dvc repro`"
            yield Finding("not to be read: DVC was ended while it wrote it", str(lock), remedy)
    if not RWLOCK.exists():
        return
    remedy = f"see that no `dvc` or `tunetrail` runs, then `rm {RWLOCK}`"
    try:
        holders = _holders(json.loads(RWLOCK.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding("damaged: DVC was ended while it wrote it", str(RWLOCK), remedy)
        return
    for pid in sorted(pid for pid in holders if not psutil.pid_exists(pid)):
        yield Finding(f"names process {pid}, which is gone", str(RWLOCK), remedy)


def _holders(locks: Any) -> set[int]:
    writers = list(locks.get("write", {}).values())
    readers = [info for infos in locks.get("read", {}).values() for info in infos]
    return {int(info["pid"]) for info in (*writers, *readers)}


def _stage_locks() -> Iterator[Finding]:
    for owner in sorted((STATE / "locks").glob("*.pid")):
        pid = owner.read_text(encoding="utf-8").strip()
        if not pid.isdecimal() or not psutil.pid_exists(int(pid)):
            text = f"stage {owner.stem} was killed while process {pid or 'unknown'} ran it"
            yield Finding(text, str(owner), f"`tunetrail run` runs it anew; or `rm {owner}`")


def _leftovers() -> Iterator[Finding]:
    """Outputs begun or replaced by a process that was killed; the stage's next run removes them."""
    if any((STATE / "locks").glob("*.pid")) and _somebody_works():
        return
    for out in _outputs():
        for suffix in ("partial", "old"):
            left = out.with_name(f".{out.name}.{suffix}")
            if os.path.lexists(left):
                remedy = f"`tunetrail run` runs the stage anew where it must; or `rm -r {left}`"
                yield Finding("a killed stage left it", str(left), remedy)


def _somebody_works() -> bool:
    pids = [owner.read_text().strip() for owner in (STATE / "locks").glob("*.pid")]
    return any(pid.isdecimal() and psutil.pid_exists(int(pid)) for pid in pids)


def _outputs() -> Iterator[Path]:
    names = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in names:
        wiring = stage.wiring(name)
        yield from map(Path, filter(None, [*wiring.outs, wiring.metrics, wiring.record]))


def _disk() -> Iterator[Finding]:
    where = dvc_storage.storage()
    for path in {Path.cwd(), where.cache if where.cache.is_dir() else Path.cwd()}:
        free = shutil.disk_usage(path).free
        if free < LEAST_FREE_BYTES:
            text = f"{free / 2**20:.0f} MiB are free, less than {LEAST_FREE_BYTES / 2**20:.0f}"
            yield Finding(text, str(path), "`tunetrail gc` shows what can go")


def _telemetry() -> Iterator[Finding]:
    """Whether a tool tells its makers of this project.  `tunetrail` switches that off for what it
    starts, unless someone has switched it on."""
    if dvc_storage.reports_use():
        remedy = "`dvc config core.analytics false`"
        yield Finding("DVC reports its use", ".dvc/config", remedy)
    for name, wanted in (
        ("DO_NOT_TRACK", ("1", "true")),
        ("MLFLOW_DISABLE_TELEMETRY", ("1", "true")),
        ("PREFECT_SERVER_ANALYTICS_ENABLED", ("0", "false")),
    ):
        value = os.environ.get(name, "")
        if value.lower() not in wanted:
            text = f"is {value!r}, so a tool reports its use"
            yield Finding(text, name, f"`export {name}={wanted[0]}`")


def _packages() -> Iterator[Finding]:
    if not LOCK.is_file():
        yield Finding("does not exist", str(LOCK), f"`git checkout {LOCK}`")
        return
    for line in packages.other_than(LOCK):
        yield Finding(line, "packages", f"`pip install -r {LOCK}`")


def _spool() -> Iterator[Finding]:
    waiting = sorted((STATE / "spool").glob("*.jsonl"))
    ended = [path for path in waiting if courier.is_ended(path)]
    if ended:
        count = "1 run waits" if len(ended) == 1 else f"{len(ended)} runs wait"
        yield Finding(f"{count} for MLflow", str(STATE / "spool"), "`tunetrail sync`")


def _mlflow() -> Iterator[Finding]:
    try:
        client = store.connect()
    except store.Unreachable as error:
        yield Finding(str(error), "MLflow", error.remedy)
        return
    from mlflow import MlflowException

    try:
        yield from _running(client)
        yield from _aliases(client)
    except StageError as error:
        yield Finding(str(error), "registry", "then look again")
    except MlflowException as error:
        remedy = "see that it is well, and that your account may read"
        yield Finding(f"refuses: {store.brief(error)}", "MLflow", remedy)


def _running(client: MlflowClient) -> Iterator[Finding]:
    for run in courier.abandoned(client):
        text = f"is RUNNING in MLflow, and its process on {platform.node()} is gone"
        name = f"run {run.info.run_id} ({run.info.run_name})"
        yield Finding(text, name, "`tunetrail sync` closes it")


def _aliases(client: MlflowClient) -> Iterator[Finding]:
    """Aliases that serve a version on less evidence than promotion asks for."""
    for problem in promotion.problems(client):
        yield Finding(problem.why, problem.what, problem.remedy)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "reading every object of the cache": _cache,
    "asking the remotes": _remotes,
    "looking at DVC's files": _dvc_files,
    "looking for stages that were killed": _stage_locks,
    "looking for what they left": _leftovers,
    "measuring the disk": _disk,
    "asking who reports home": _telemetry,
    "comparing packages with the lock file": _packages,
    "looking into the spool": _spool,
    "asking MLflow": _mlflow,
}
"""Each check by what it is doing, in the order in which they run."""
