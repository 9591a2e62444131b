"""The MLflow store: which one it is, made whole, quiet, and waited for with patience that ends."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 4
"""How long MLflow may take to say that it is there."""

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


def connect() -> MlflowClient:
    """A client of the store at MLFLOW_TRACKING_URI, or of mlflow.db in the current folder.

    Raises:
        Unreachable: when it has not answered after PROBE_SECONDS.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = mlflow.get_tracking_uri()
    try:
        _create_sqlite(uri)
        client = mlflow.MlflowClient()
        with patience(PROBE_SECONDS, retries=0):
            client.search_experiments(max_results=1)
    except Exception as error:  # what a store raises depends on its kind: HTTP, SQL, files
        where = without_password(uri)
        raise Unreachable(f"MLflow at {where} does not answer ({brief(error)})") from error
    return client


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


def without_password(uri: str) -> str:
    """A store's address as it may stand in a log."""
    return re.sub(r"//[^/@]*@", "//", uri)


def brief(error: BaseException) -> str:
    """The root of an error, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return without_password(line)[:200]


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
