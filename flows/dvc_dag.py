"""The workflow of dvc.yaml, stage by stage: the only file that knows DVC's Python API."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.lineage.stage import FAULT, GATE, MISUSE, STATE, failure

if TYPE_CHECKING:
    from dvc.repo import Repo

Outcome = Literal["ran", "cached", "restored"]
"""The command ran; nothing had changed; the outputs came from the cache of earlier runs."""

RWLOCK = Path(".dvc/tmp/rwlock")


@dataclass(frozen=True)
class Stage:
    """What dvc.yaml says of a stage. `needs` and `outs` are names of stages, and paths."""

    name: str
    desc: str
    needs: tuple[str, ...]
    outs: tuple[str, ...]
    retries: int


class DagError(Exception):
    """dvc.yaml cannot be walked as asked. The message says why, and how to mend it."""


class StageFailed(Exception):
    """A stage did not end well. `exit_code` is the one that the command line ends with."""

    def __init__(self, stage: str, message: str, exit_code: int) -> None:
        super().__init__(stage, message, exit_code)
        self.stage = stage
        self.message = message
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}"


def plan(target: str | None) -> list[Stage]:
    """The stages to walk for a target, itself included, in an order that their needs allow.

    Raises:
        DagError: when dvc.yaml cannot be read, or has no such stage.
    """
    stages = _stages()
    if target is None:
        return stages
    by_name = {stage.name: stage for stage in stages}
    if target not in by_name:
        near = difflib.get_close_matches(target, by_name, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(by_name)}"
        raise DagError(f"{target} is no stage of dvc.yaml; {remedy}")
    wanted = {target}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return [stage for stage in stages if stage.name in wanted]


def _stages() -> list[Stage]:
    from dvc.exceptions import DvcException

    try:
        with _repo() as repo:
            return _in_order([_stage(node, repo) for node in repo.index.stages if node.cmd])
    except DvcException as error:
        raise DagError(f"DVC cannot read the workflow: {error}; `dvc dag` shows where") from error


def _stage(node: Any, repo: Repo) -> Stage:
    needs = (need for need in repo.index.graph.successors(node) if need.cmd)
    return Stage(
        name=node.addressing,
        desc=node.desc or "",
        needs=tuple(sorted(need.addressing for need in needs)),
        outs=tuple(out.def_path for out in node.outs),
        retries=int((node.meta or {}).get("retries", 0)),
    )


def _in_order(stages: list[Stage]) -> list[Stage]:
    """Each stage after those that it needs; as in dvc.yaml wherever that leaves a choice."""
    left = list(stages)
    ordered: list[Stage] = []
    while left:
        done = {stage.name for stage in ordered}
        following = next(stage for stage in left if done.issuperset(stage.needs))
        left.remove(following)
        ordered.append(following)
    return ordered


def reproduce(
    name: str, force: bool = False, on_start: Callable[[], None] = lambda: None
) -> Outcome:
    """Bring one stage up to date, the stages that it needs being so already.

    `on_start` is called when the stage's command is about to run.

    Raises:
        StageFailed: with the stage's own message where it left one, else DVC's.
    """
    from dvc.exceptions import DvcException

    (STATE / "failures" / f"{name}.txt").unlink(missing_ok=True)  # of an earlier run
    try:
        with _repo() as repo:
            restored = _watch_restore(repo, on_start)
            if force:
                on_start()
            done = repo.reproduce(
                [*_data_sources(repo, name), name],
                single_item=True,
                force=force,
                run_env={"PATH": _path()},
            )
            if all(stage.addressing != name for stage in done):
                return "cached"
            return "restored" if restored else "ran"
    except (DvcException, OSError) as error:
        raise _failed(name, error) from error


@contextmanager
def _repo() -> Iterator[Repo]:
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # the walk says itself what it does
    with Repo() as repo:
        yield repo


def _path() -> str:
    """PATH on which `python` is the interpreter that runs this, also in an environment that is
    not activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _data_sources(repo: Repo, name: str) -> list[str]:
    """The `dvc add`ed files that a stage reads; `dvc repro` records their change with the stage."""
    stage = next(stage for stage in repo.index.stages if stage.addressing == name)
    needs = repo.index.graph.successors(stage)
    return sorted(need.addressing for need in needs if not need.cmd)


def _watch_restore(repo: Repo, on_start: Callable[[], None]) -> list[str]:
    """DVC asks its run cache before it runs a command. The list gets what the cache gave."""
    from dvc.stage.cache import RunCacheNotFoundError

    restored: list[str] = []
    restore = repo.stage_cache.restore

    def watched(stage: Any, *arguments: Any, **options: Any) -> None:
        try:
            restore(stage, *arguments, **options)
        except RunCacheNotFoundError:
            on_start()
            raise
        restored.append(stage.addressing)

    repo.stage_cache.restore = watched
    return restored


def _failed(name: str, error: Exception) -> StageFailed:
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError
    from dvc.stage.exceptions import StageCmdFailedError

    cause = error.__cause__ if isinstance(error, ReproductionError) else error
    if isinstance(cause, StageCmdFailedError):
        return _command_failed(name, str(cause))
    if isinstance(cause, RWLockFileCorruptedError | RWLockFileFormatError):
        text = f"{RWLOCK} is damaged; see that no dvc or tunetrail runs, then `rm {RWLOCK}`"
        return StageFailed(name, text, FAULT)
    if isinstance(cause, LockError):
        text = f"another dvc or tunetrail is at work here; wait for it, then run again ({cause})"
        return StageFailed(name, text, FAULT)
    if isinstance(cause, FileNotFoundError) and cause.filename:
        missing = os.path.relpath(cause.filename)
        return StageFailed(name, f"{missing}, which {name} needs, does not exist", MISUSE)
    if isinstance(cause, DvcException):
        return StageFailed(name, str(cause), MISUSE)
    return StageFailed(name, f"{type(cause).__name__}: {cause}", FAULT)


def _command_failed(name: str, text: str) -> StageFailed:
    """The runner leaves a message; a stage without one did not get as far, or was killed."""
    said = re.search(r"exited with (-?\d+)$", text)
    status = int(said[1]) if said else FAULT
    message = failure(name)
    if message is None:
        return StageFailed(name, f"{text}{_killed(status)}", FAULT)
    return StageFailed(name, message, status if status in (GATE, MISUSE) else FAULT)


def _killed(status: int) -> str:
    if status in (-9, 128 + 9):
        return ", which is SIGKILL: the system ends so what takes more memory than there is"
    return ""
