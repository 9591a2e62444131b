"""One writer at a time, and none without its parent.

Killing `dvc` leaves the stage's command running; a second `dvc repro` would then start a second
writer on the same outputs.  So a stage holds a lock, and ends when the process that started it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

PARENT_CHECK_SECONDS = 0.5
_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


class Busy(Exception):
    """Another process writes the same stage."""


@contextlib.contextmanager
def only_writer(stage: str, folder: Path, wait_seconds: float = 5.0) -> Iterator[None]:
    """Hold the stage's lock. The system frees it when this process dies, however that happens.

    A writer whose parent has just been killed needs a moment to notice, hence the wait.

    Raises:
        Busy: when another process still holds it after `wait_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / f"{stage}.pid"
    lock = FileLock(folder / f"{stage}.lock", timeout=wait_seconds)
    try:
        lock.acquire()
    except Timeout:
        pid = owner.read_text().strip() if owner.exists() else "unknown"
        raise Busy(
            f"stage {stage} is already being run by process {pid}; "
            f"wait for it, or stop it with `kill {pid}`, then run again"
        ) from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)  # one that stays tells of a writer that was killed
        lock.release()


def die_with_parent(within: float | None = None) -> None:
    """End this process, as if by SIGTERM, when the process that started it is gone.

    A shell in between (DVC starts commands through one) counts as part of the starter: when DVC is
    killed the shell lives on.

    Args:
        within: seconds that SIGTERM may take; then comes SIGKILL. None: as long as it needs.
    """
    chain = _starters()

    def watch() -> None:
        while all(_lives(process) for process in chain):
            if threading.Event().wait(PARENT_CHECK_SECONDS):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if within is not None:
            threading.Event().wait(within)
            os.kill(os.getpid(), signal.SIGKILL)

    if chain:
        threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    """A killed process whose own parent has not collected it yet still counts as running."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _starters() -> list[psutil.Process]:
    """The parent, and behind each shell that runs a single command (`sh -c`), the next one up."""
    chain: list[psutil.Process] = []
    process = psutil.Process()
    with contextlib.suppress(psutil.Error):
        while (parent := process.parent()) is not None and parent.pid != 1:
            chain.append(parent)
            if parent.name() not in _SHELLS or "-c" not in parent.cmdline()[1:2]:
                break
            process = parent
    return chain


def name() -> str:
    """This process, as no other on this machine was ever called: its number and when it began."""
    return f"{os.getpid()}@{psutil.Process().create_time():.0f}"


def is_running(name: str) -> bool:
    """Whether the process that `name` once gave still runs on this machine."""
    number, _, began = name.partition("@")
    try:
        process = psutil.Process(int(number))
        return _lives(process) and f"{process.create_time():.0f}" == began
    except psutil.NoSuchProcess:
        return False


class Terminated(BaseException):
    """SIGTERM, as an exception, so that `finally` blocks run."""


def raise_on_sigterm() -> None:
    """Turn SIGTERM into `Terminated` in the main thread."""

    def handler(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, handler)
