"""A team's MLflow server, with accounts, for the time that `tunetrail server` runs.

    python -m flows.registry_server HOST PORT WORKERS ARTIFACTS

is the server alone, with all that is secret in its environment and in files that only their owner
can read.  Its folder holds, beside the artifacts and the database of a server on sqlite,

    basic_auth.ini   the settings of MLflow's auth app; the database's address stands there
    admin-password   of the user `admin`, as it was made on the first start
    secret-key       what protects MLflow's forms
    server.log
"""

from __future__ import annotations

import configparser
import contextlib
import errno
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from flows import registry_access
from flows.registry_access import ADMIN
from tasks.lineage import store
from tasks.lineage.process import Terminated, die_with_parent, raise_on_sigterm
from tasks.lineage.stage import FAULT, StageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
START_SECONDS = 180.0
STOP_SECONDS = 10.0
PASSWORD_SECONDS = 10
"""How long the server remembers that a password was right; so long a removed user is still known."""

_SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nobody's code runs on the server
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
_NOT_FOR_A_SERVER = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_RUN_ID",
    "MLFLOW_ENABLE_WORKSPACES",
)


class NotServed(StageError):
    """The server cannot start, or has ended. The message says why, or where to look."""

    exit_code = FAULT


class BadAddress(StageError):
    """A database is named in a way that cannot be."""


@dataclass(frozen=True)
class Home:
    """The folder of a server."""

    folder: Path

    @property
    def settings(self) -> Path:
        return self.folder / "basic_auth.ini"

    @property
    def admin_password(self) -> Path:
        return self.folder / "admin-password"

    @property
    def secret_key(self) -> Path:
        return self.folder / "secret-key"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def artifacts(self) -> Path:
        return (self.folder / "artifacts").absolute()

    def database(self) -> str:
        """The address that the server was started with last.

        Raises:
            NotServed: when it never was.
        """
        if not self.settings.exists():
            raise NotServed(
                f"there is no server in {self.folder}; `tunetrail server` makes one, and --folder "
                "names another place"
            )
        settings = configparser.ConfigParser()
        settings.read(self.settings, encoding="utf-8")
        return settings["mlflow"]["database_uri"]


def default_folder() -> Path:
    """Where a server keeps its files when nothing else is said: outside the repository, which
    anyone who trains can write, and which is cleaned."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "tunetrail" / "server"


def choose_database(home: Home, named: str | None) -> str:
    """The database's address: as named, or as last time, or a file of sqlite in the folder.

    Raises:
        BadAddress: when it is of another kind than sqlite or PostgreSQL.
    """
    if named is None:
        if home.settings.exists():
            return home.database()
        return f"sqlite:///{home.folder.absolute() / 'mlflow.db'}"
    if not named.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg2://")):
        raise BadAddress(
            f"{store.without_password(named)} is no database for this; write "
            "postgresql://USER@HOST/DATABASE or sqlite:////PATH"
        )
    # which driver is meant without its name depends on the version of SQLAlchemy
    return re.sub(r"^postgresql://", "postgresql+psycopg2://", named)


def has_password(address: str) -> bool:
    """Whether a database's address holds a password, which all who list processes would see."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except ArgumentError:
        return False
    return url.password is not None or "password" in url.query


def prepare(home: Home, database: str, name: str) -> list[str]:
    """Make or mend all that the server needs, and bring the database up to date.

    Args:
        name: `register.name`.

    Returns:
        What was done, a line each; none on a later start.

    Raises:
        registry_access.DatabaseProblem, registry_access.AccessError: as `registry_access.set_up`.
    """
    home.folder.mkdir(parents=True, exist_ok=True)
    home.folder.chmod(0o700)  # the database holds what not everyone may read
    with FileLock(home.folder / "set-up.lock"):
        done = registry_access.set_up(database, name)
        for file in (home.admin_password, home.secret_key):
            if not file.exists():
                _write_private(file, secrets.token_urlsafe(32))
        password = home.admin_password.read_text(encoding="utf-8")
        if registry_access.make_admin(database, password):
            done.append(f"user {ADMIN} has the password in {home.admin_password}")
        _write_private(home.settings, _auth_settings(database))
    return done


@contextlib.contextmanager
def serving(
    home: Home, database: str, artifacts: str, host: str, port: int, workers: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, which answers, until the block ends.

    Raises:
        NotServed: when the port is in use, or the server has ended or does not answer in time.
    """
    check_port(host, port)
    with home.log.open("wb") as log:
        home.log.chmod(0o600)
        server = subprocess.Popen(
            command(host, port, workers, artifacts),
            cwd=Path(__file__).parents[1],
            env=secured(home, database),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # Ctrl-C is ours; we end it in order
        )
    try:
        _wait_for(server, home, f"{address(host, port)}/health")
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def serve(
    home: Home,
    database: str,
    artifacts: str,
    host: str,
    port: int,
    workers: int,
    name: str,
    tell: Callable[[str], None],
) -> None:
    """Set up, start, and serve until Ctrl-C or SIGTERM.

    Raises:
        StageError: as `prepare` and `serving`, and when the server ends by itself.
    """
    check_port(host, port)  # before anything is changed
    for line in prepare(home, database, name):
        tell(line)
    if host not in LOOPBACK:
        tell(
            f"{host} is reached from other machines: passwords and models cross the network "
            "unencrypted. Put a reverse proxy with TLS before it; docs/access.md shows one"
        )
    raise_on_sigterm()
    with contextlib.suppress(KeyboardInterrupt, Terminated):
        with serving(home, database, artifacts, host, port, workers) as server:
            tell(f"MLflow is at {address(host, port)}, its log is {home.log}; Ctrl-C stops it")
            code = server.wait()
        raise NotServed(f"the server ended with code {code}; {home.log} says why")
    tell("The server has stopped.")


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds the server."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Refuse what cannot be listened on.

    Raises:
        NotServed: when the port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = (
                f"port {port} of {host} is in use; stop what uses it, or name another with {option}"
            )
        else:
            why = (
                f"{host}:{port} cannot be listened on ({error.strerror}); name another with --host"
            )
        raise NotServed(why) from error


def _auth_settings(database: str) -> str:
    address = database.replace("%", "%%")  # the file's format knows a percent sign as its own
    return (
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"  # what no role was granted, it does not have
        f"database_uri = {address}\n"
        f"admin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # MLflow checks a password several times a request, and each check takes a processor's time
        f"auth_cache_ttl_seconds = {PASSWORD_SECONDS}\n"
    )


def command(host: str, port: int, workers: int, artifacts: str) -> list[str]:
    """What starts a server with accounts."""
    return [sys.executable, "-m", __name__, host, str(port), str(workers), artifacts]


def environment(database: str) -> dict[str, str]:
    """What a server without accounts runs with."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_A_SERVER}
    return {**kept, **_SETTINGS, "MLFLOW_BACKEND_STORE_URI": database}


def secured(home: Home, database: str) -> dict[str, str]:
    """What a server with accounts runs with, after `prepare`."""
    return {
        **environment(database),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",  # a route that MLflow forgot to guard is refused
        "MLFLOW_AUTH_CONFIG_PATH": str(home.settings.absolute()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": home.secret_key.read_text(encoding="utf-8"),
    }


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at no moment otherwise."""
    beside = path.with_name(f".{path.name}.partial")
    beside.unlink(missing_ok=True)
    beside.touch(mode=0o600, exist_ok=False)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _wait_for(server: subprocess.Popen[bytes], home: Home, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise NotServed(f"the server ended with code {server.returncode}; {home.log} says why")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.2)
    raise NotServed(f"the server has not answered in {START_SECONDS:.0f} s; see {home.log}")


def _serve(host: str, port: str, workers: str, artifacts: str) -> None:
    die_with_parent()
    from mlflow.cli import cli

    cli(
        [
            *("server", "--app-name", "basic-auth"),
            *("--host", host, "--port", port, "--workers", workers),
            *("--artifacts-destination", artifacts),
            "--uvicorn-opts=--log-level warning",
        ]
    )


if __name__ == "__main__":
    _serve(*sys.argv[1:])
