"""Processes that serve for as long as this one does: started, watched, started again, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tasks.lineage.stage import FAULT, StageError

START_SECONDS = 180.0
STOP_SECONDS = 10.0


class Down(StageError):
    """A process does not start, or ends again and again. The message names its log."""

    exit_code = FAULT


class Child:
    """A process of which there is one, in a process group of its own: Ctrl-C is not meant for it.

    Its module calls `die_with_parent`, for when this process is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        health: str | None = None,
    ) -> None:
        """`health` is an address that answers once it serves."""
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._health = health
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` says when it serves."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch(mode=0o600)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def wait(self) -> None:
        """Return once it serves.

        Raises:
            Down: when it has ended, or does not answer in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while self._health is not None:
            if (code := self.ended()) is not None:
                raise Down(f"{self.name} ended with code {code} as it started; {self.log} says why")
            if time.monotonic() > deadline:
                raise Down(f"{self.name} has not answered in {START_SECONDS:.0f} s; see {self.log}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(self._health, timeout=2).close()
                return
            time.sleep(0.1)

    def ended(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll() if self._process else None

    def descendants(self) -> list[psutil.Process]:
        """All that it has started."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children(recursive=True))
        return []

    def count(self, module: str) -> int:
        """How many of these run a module."""
        found = 0
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += module in process.cmdline()
        return found

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End it, and wait for all that it has started; after so long, kill them."""
        if self._process is None:
            return
        started = self.descendants()
        self._process.terminate()
        deadline = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        _, alive = psutil.wait_procs(started, max(0.1, deadline - time.monotonic()))
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Watch:
    """Starts again what has ended, some times and no more."""

    TIMES = 3
    WITHIN_SECONDS = 600.0

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._ends: dict[str, list[float]] = {child.name: [] for child in children}

    def look(self) -> list[str]:
        """Start again whatever has ended.

        Returns:
            What was done, a line each.

        Raises:
            Down: when it ended too often, or does not start again.
        """
        done = []
        for child in self._children:
            if (code := child.ended()) is None:
                continue
            now = time.monotonic()
            ends = [end for end in self._ends[child.name] if now - end < self.WITHIN_SECONDS]
            self._ends[child.name] = [*ends, now]
            if len(ends) >= self.TIMES:
                raise Down(
                    f"{child.name} ended {len(ends) + 1} times in {self.WITHIN_SECONDS / 60:.0f} "
                    f"minutes, with code {code} at last; {child.log} says why"
                )
            child.start()
            child.wait()
            done.append(f"{child.name} ended with code {code}, and was started again")
        return done
