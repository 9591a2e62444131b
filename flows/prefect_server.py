"""A Prefect server that neither Ctrl-C nor the end of its parent leaves behind.

    python -m flows.prefect_server PORT

is an API for the time of one run, where no server is configured.  Prefect starts one itself if need
be.  But that one is ended by the Ctrl-C that is meant for a stage, and outlives a run that is killed;
this one does neither.  Its runs go to Prefect's usual database, where a server that is started later
shows them.

    python -m flows.prefect_server PORT HOST

is a whole server, with pages, schedules and automations, for `tunetrail up`.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.lineage.process import die_with_parent
from tasks.lineage.stage import STATE

LOG = STATE / "prefect.log"
START_SECONDS = 120.0
STOP_SECONDS = 5.0


class NotStarted(Exception):
    """The server did not come up. The message says where its log is."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of an API that answers, until the block ends.

    Raises:
        NotStarted: when it has ended, or not answered after START_SECONDS.
    """
    port = _free_port()
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # out of reach of Ctrl-C
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait_for(server, f"{url}/health")
        yield url
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise NotStarted(f"it ended with code {server.returncode}, {LOG} says why")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        time.sleep(0.1)
    raise NotStarted(f"nothing after {START_SECONDS:.0f} s, see {LOG}")


def _serve(port: int, host: str | None) -> None:
    die_with_parent()
    import uvicorn
    from prefect.server.api.server import create_app

    _let_it_schedule()
    app = create_app(ephemeral=host is None, final=True)
    uvicorn.run(
        app,
        host=host or "127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=2,  # a browser keeps its connection for as long as it likes
    )


def _let_it_schedule() -> None:
    """Prefect 3.8 inserts scheduled runs in bulk, with a key that is a property of Python and no column.
    SQLAlchemy 2.0 leaves that out; 2.1 raises unless it is told so, and no schedule ever runs."""
    from prefect.server.database.orm_models import FlowRun
    from sqlalchemy import inspect

    def leave_out(model: type, mapping: Mapping[str, object], value: object) -> None:
        pass

    state: Any = inspect(FlowRun).all_orm_descriptors["state"]
    state.bulk_dml_setter = leave_out


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
