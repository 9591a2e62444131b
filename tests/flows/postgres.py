"""A PostgreSQL cluster in a temporary folder, for the time of the tests.

A plugin, for the tests in this folder that name it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

PASSWORD = "50% of @/: "
IN_AN_ADDRESS = "50%25%20of%20%40%2F%3A%20"


def _programs() -> Path | None:
    """The folder with initdb: on PATH, or where Debian has it."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _unprivileged() -> dict[str, Any]:
    """How subprocess runs a program as somebody else than root, whom PostgreSQL refuses."""
    if os.getuid() != 0:
        return {}
    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty database, with a password that has to be quoted in every format."""
    programs = _programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL here: `apt-get install postgresql`, as .ci/run does")
    who = _unprivileged()
    # not in pytest's folder, which nobody but its owner may enter
    folder = Path(tempfile.mkdtemp(prefix="tunetrail-postgres-"))
    (folder / "password").write_text(PASSWORD)
    port = free_port()
    if who:
        for path in (folder, folder / "password"):
            os.chown(path, who["user"], who["group"])

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), "--pgdata", str(folder / "data"), *arguments]
        log = folder / "calls.log"
        with log.open("ab") as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, cwd=folder, check=False, timeout=120, **who
            )
        assert done.returncode == 0, log.read_text()

    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    try:
        call(
            "initdb",
            *("--username", "mlflow", "--pwfile", str(folder / "password")),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        call(
            "pg_ctl", "--wait", "--log", str(folder / "server.log"), "--options", settings, "start"
        )
        try:
            yield f"postgresql://mlflow:{IN_AN_ADDRESS}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "--wait", "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
