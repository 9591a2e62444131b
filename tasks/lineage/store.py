"""The MLflow store: which one it is, made whole, quiet, and waited for with patience that ends."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 4
"""How long MLflow's machine may take to accept a connection."""

ANSWER_SECONDS = 20
"""How long MLflow may then take for its first answer: a server with accounts hashes a password for
each, which takes seconds where others compute."""

_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A server that went away after the probe costs seconds, where MLflow's own 7 retries of 120
    # seconds cost minutes. Uploads of models ask for more.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Unreachable(Exception):
    """MLflow does not answer. The message says where it was sought, and why not."""

    remedy = "start it, or name another in MLFLOW_TRACKING_URI"


class NotLetIn(Unreachable):
    """MLflow answers, and does not know who asks."""

    remedy = (
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of an account there"
    )


def connect() -> MlflowClient:
    """A client of the store at MLFLOW_TRACKING_URI, or of mlflow.db in the current folder.

    Raises:
        Unreachable: when nothing listens there, or it does not answer.
        NotLetIn: when name or password are missing or wrong.
    """
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        _refuse_dead(named)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = mlflow.get_tracking_uri()
    try:
        _create_sqlite(uri)
        client = mlflow.MlflowClient()
        with patience(ANSWER_SECONDS, retries=0):
            client.search_experiments(max_results=1)
    except Exception as error:  # what a store raises depends on its kind: HTTP, SQL, files
        raise _unreachable(uri, error) from error
    return client


def address() -> str:
    """Where `connect` finds MLflow, as it can be named from any other folder."""
    import mlflow

    uri: str = mlflow.get_tracking_uri()
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith("/"):
        return uri
    return f"sqlite:///{Path(path).absolute()}"


@contextlib.contextmanager
def patience(seconds: int, retries: int) -> Iterator[None]:
    """Wait this long for each of MLflow's answers, and ask again so many times."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def every(search: Callable[..., Any], **wanted: Any) -> Iterator[Any]:
    """All that a search of MLflow finds, page after page."""
    token = None
    while True:
        page = search(page_token=token, **wanted)
        yield from page
        token = page.token
        if not token:
            return


def without_password(uri: str) -> str:
    """A store's address as it may stand in a log."""
    return re.sub(r"//[^/@]*@", "//", uri)


def brief(error: BaseException) -> str:
    """The root of an error, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return without_password(line)[:200]


def _refuse_dead(uri: str) -> None:
    """Knock before MLflow is imported, which takes seconds: an outage then costs next to nothing, and
    a machine that is off is not waited for as long as a server that is slow.

    Raises:
        Unreachable: when no connection is to be had.
    """
    try:
        address = urlsplit(uri)
        port = address.port or {"http": 80, "https": 443}.get(address.scheme)
    except ValueError:
        return
    host = address.hostname
    if not address.scheme.startswith("http") or not host or not port:
        return
    if address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # the proxy knows the way, this machine need not
    try:
        socket.create_connection((host, port), PROBE_SECONDS).close()
    except OSError as error:
        raise _unreachable(uri, error) from error


def _unreachable(uri: str, error: BaseException) -> Unreachable:
    if "error code 401" in str(error):
        return NotLetIn(f"MLflow at {without_password(uri)} does not let you in (401)")
    return Unreachable(f"MLflow at {without_password(uri)} does not answer ({brief(error)})")


def _create_sqlite(uri: str) -> None:
    """Make a missing sqlite database beside its place and move it there whole: several processes
    that meet a fresh one, or one in the middle of its migrations, lose runs."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
    if path.exists():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}-lock")):
        if path.exists():
            return
        partial = path.with_name(f"{path.name}-partial")
        partial.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{partial}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        store.engine.dispose()
        partial.rename(path)
