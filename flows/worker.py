"""The worker: takes flow runs from the work pool, and runs each as a process of this machine.

    python -m flows.worker

serves the Prefect server that PREFECT_API_URL names, from the clone that it is started in.
`tunetrail up` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import platform
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from tasks.lineage.process import die_with_parent

POOL = "tunetrail"
"""The work pool, as prefect.yaml names it."""

STOP_SECONDS = 60.0
"""How long a flow run may take to end."""

FAREWELL_SECONDS = 15.0
"""How long a worker, and after it a flow run, may take to say that it ends when its parent is gone: the
server may be gone, too, and what the stage computes meanwhile nobody waits for."""


def name() -> str:
    """Of the worker, in Prefect's pages: the machine and the clone."""
    return f"{platform.node()} {Path.cwd().name}".replace("/", "-").replace("%", "-")


def environment() -> dict[str, str]:
    """What flow runs need to find this clone and its Python."""
    here = str(Path(sys.executable).parent)
    return {
        "TUNETRAIL_PROJECT": str(Path.cwd()),
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
    }


def main() -> None:
    """Work until SIGTERM or Ctrl-C, which end the flow runs, too."""
    die_with_parent(FAREWELL_SECONDS)
    os.environ |= environment()
    from prefect.workers.process import ProcessWorker

    worker = ProcessWorker(work_pool_name=POOL, name=name())
    # Prefect's worker gives up after some minutes without its server, and ends its flow runs.
    # They are at work, and need no server for that.
    for call in ("sync_with_backend", "get_and_submit_flow_runs"):
        setattr(worker, call, _patiently(getattr(worker, call)))
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_stopped(worker.start(printer=_say)))


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Prefect's own way to stop waits for as long as the flow runs take, or kills them; neither lets
    them keep a checkpoint and say that they were stopped."""
    import psutil

    worker = asyncio.create_task(work)
    stopping: list[asyncio.Task[None]] = []

    async def stop() -> None:
        runs = psutil.Process().children()
        for run in runs:
            with contextlib.suppress(psutil.NoSuchProcess):
                run.terminate()
        await asyncio.to_thread(psutil.wait_procs, runs, STOP_SECONDS)
        worker.cancel()

    def on_signal() -> None:
        if not stopping:
            stopping.append(asyncio.create_task(stop()))

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await worker


def _patiently(call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Once the server was there, an outage is told and waited out."""
    import httpx

    been_there = False

    @functools.wraps(call)
    async def patient() -> Any:
        nonlocal been_there
        try:
            done = await call()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            outage = not isinstance(error, httpx.HTTPStatusError) or error.response.is_server_error
            if not (been_there and outage):
                raise
            _say(f"Prefect does not answer ({type(error).__name__}); asking again")
            return []
        been_there = True
        return done

    return patient


def _say(text: object = "") -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
