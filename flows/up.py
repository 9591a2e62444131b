"""`tunetrail up`: Prefect, MLflow and a worker for this clone, until Ctrl-C.

A server that PREFECT_API_URL or MLFLOW_TRACKING_URI names is a team's, and is used as it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from flows import registry_access, registry_server
from flows.children import Child, Down, Watch
from flows.flow_run import RETRIES
from flows.registry_server import LOOPBACK, BadAddress, Home
from tasks.lineage import store
from tasks.lineage.process import Terminated, raise_on_sigterm
from tasks.lineage.stage import FAULT, STATE, StageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

FOLDER = STATE / "up"
WORKER_SECONDS = 90.0
STOP_RUNS_SECONDS = 90.0
"""How long a stage may take to keep a checkpoint."""

Tell = Callable[[str], None]


class NotUp(StageError):
    """Something that must run does not. The message says what, and how to mend it."""

    exit_code = FAULT


class Exposed(StageError):
    """Other machines would be let in without a password."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    host: str
    prefect_port: int
    mlflow_port: int
    prefect_database: str | None
    """None for that of PREFECT_SERVER_DATABASE_CONNECTION_URL, or Prefect's own choice."""
    backend_store: str | None
    """None for the store of this clone, or with accounts that of `tunetrail server`."""
    accounts: bool
    """Whether MLflow asks who one is, as `tunetrail server` does."""


@dataclass(frozen=True)
class Service:
    """A server that is used, and the process that serves it, if it is ours."""

    url: str
    child: Child | None


def up(options: Options, model: str, notify: str | None, tell: Tell) -> None:
    """Start what is missing, and serve until Ctrl-C or SIGTERM.

    Args:
        model: `register.name`.
        notify: the notification block to tell people with, as slack-webhook/team; None for none.

    Raises:
        StageError: when something cannot be started, or ends again and again.
        store.Unreachable: when a team's MLflow does not answer.
    """
    raise_on_sigterm()
    with _alone():
        try:
            with contextlib.ExitStack() as stack:
                _serve(options, model, notify, tell, stack)
        except (KeyboardInterrupt, Terminated):
            tell("All has stopped.")


def _serve(
    options: Options, model: str, notify: str | None, tell: Tell, stack: contextlib.ExitStack
) -> None:
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    prefect = _prefect(options)
    mlflow = _mlflow(options, model, tell)
    servers = [service.child for service in (prefect, mlflow) if service.child]
    for child in servers:
        stack.callback(child.stop)
        child.start()
    if servers:
        tell(f"starting {' and '.join(child.name for child in servers)}")
    for child in servers:
        child.wait()

    settings: dict[object, object] = {
        PREFECT_API_URL: prefect.url,
        PREFECT_CLIENT_MAX_RETRIES: int(RETRIES),
    }
    if prefect.child and (auth := os.environ.get("PREFECT_SERVER_API_AUTH_STRING")):
        settings[PREFECT_API_AUTH_STRING] = auth
    stack.enter_context(temporary_settings(settings))
    _deploy(prefect, model, notify, tell)
    _check_account(mlflow)

    worker = _worker(prefect, mlflow)
    stack.callback(_stop_worker, worker, tell)
    worker.start()
    _wait_online(worker)
    for line in _links(options, prefect, mlflow):
        tell(line)
    watch = Watch([*servers, worker])
    while True:
        for line in watch.look():
            tell(line)
            _await_signs_of_life()
        time.sleep(0.5)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(FOLDER / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise NotUp("`tunetrail up` already runs in this clone; end that one first") from None
    try:
        yield
    finally:
        lock.release()


def _prefect(options: Options) -> Service:
    from prefect.settings import PREFECT_API_URL

    address = registry_server.address(options.host, options.prefect_port)
    url = f"{address}/api"
    named = PREFECT_API_URL.value()
    if named and not _ours(named, url):
        return Service(named, None)
    registry_server.check_port(options.host, options.prefect_port, "--prefect-port")
    if options.host not in LOOPBACK and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise Exposed(
            f"{options.host} is reached from other machines, and who reaches Prefect runs code here; "
            "put USER:PASSWORD into PREFECT_SERVER_API_AUTH_STRING"
        )
    environment = _plain_environment("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    environment |= {
        "PREFECT_SERVER_API_HOST": options.host,
        "PREFECT_SERVER_API_PORT": str(options.prefect_port),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "WARNING",
    }
    variable = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    if named := options.prefect_database or os.environ.get(variable):
        environment[variable] = prefect_database(named)
    command = [sys.executable, "-m", "flows.prefect_server", str(options.prefect_port)]
    log = FOLDER / "prefect.log"
    child = Child("Prefect", [*command, options.host], environment, log, f"{url}/health")
    return Service(url, child)


def prefect_database(named: str) -> str:
    """A database's address with the driver that Prefect takes.

    Raises:
        BadAddress: when it is of another kind than sqlite or PostgreSQL.
    """
    for kind, driver in (("postgresql", "asyncpg"), ("sqlite", "aiosqlite")):
        found = re.match(rf"{kind}(\+{driver})?://", named)
        if found:
            return f"{kind}+{driver}://{named[found.end() :]}"
    raise BadAddress(
        f"{store.without_password(named)} is no database for Prefect; write "
        "postgresql://USER@HOST/DATABASE or sqlite:////PATH"
    )


def _mlflow(options: Options, model: str, tell: Tell) -> Service:
    url = registry_server.address(options.host, options.mlflow_port)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    local = not named or named.startswith("sqlite:") or _ours(named, url)
    if named and not local:
        store.connect()
        return Service(named, None)
    if named and _ours(named, url):
        del os.environ["MLFLOW_TRACKING_URI"]  # what it names is what we serve
    registry_server.check_port(options.host, options.mlflow_port, "--mlflow-port")
    where = (options.host, options.mlflow_port)
    log = FOLDER / "mlflow.log"
    if options.accounts:
        home = Home(registry_server.default_folder())
        database = registry_server.choose_database(home, options.backend_store)
        for line in registry_server.prepare(home, database, model):
            tell(line)
        command = registry_server.command(*where, 2, str(home.artifacts))
        environment = registry_server.secured(home, database)
    elif options.host not in LOOPBACK:
        raise Exposed(
            f"{options.host} is reached from other machines, and who reaches MLflow could promote; "
            "--accounts makes it ask who they are"
        )
    else:
        if options.backend_store:
            database = registry_server.choose_database(Home(FOLDER), options.backend_store)
            registry_access.probe(database)
        else:
            database = _store_of_clone()
        artifacts = str(Path("mlruns").absolute())
        command = [sys.executable, "-m", "flows.mlflow_server", *map(str, where), artifacts]
        environment = registry_server.environment(database)
    return Service(url, Child("MLflow", command, _with_code(environment), log, f"{url}/health"))


def _store_of_clone() -> str:
    """The database that `tunetrail run` writes to where no server is named, made if missing."""
    store.connect()
    import mlflow

    uri = str(mlflow.get_tracking_uri())
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).absolute()}"


def _ours(named: str, url: str) -> bool:
    """Whether an address that is named is the one that we would serve, and nobody does yet."""
    ours, theirs = urlsplit(url), urlsplit(named)
    if theirs.port != ours.port or theirs.hostname not in {*LOOPBACK, ours.hostname}:
        return False
    with contextlib.suppress(OSError):
        socket.create_connection((str(theirs.hostname), theirs.port or 0), 2).close()
        return False
    return True


def _plain_environment(*without: str) -> dict[str, str]:
    return _with_code({key: value for key, value in os.environ.items() if key not in without})


def _with_code(environment: Mapping[str, str]) -> dict[str, str]:
    """Where Python finds this package, also when it is not installed."""
    code = str(Path(__file__).parents[1])
    paths = [code, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _deploy(prefect: Service, model: str, notify: str | None, tell: Tell) -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    from flows import automations, deployments

    with get_client(sync_client=True) as client:
        try:
            _ask(client, prefect.url)
            there, new = deployments.apply(client, prefect.url)
            if new:
                tell(f"{len(there)} deployments are as prefect.yaml says")
            if prefect.child and (missed := deployments.forget_missed(client, there.values())):
                tell(f"{missed} runs that were planned while nothing ran here are left out")
            for line in automations.apply(client, model, there, notify):
                tell(line)
            automations.await_signs_of_life(client)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            raise NotUp(f"Prefect at {prefect.url}: {store.brief(error)}") from error


def _await_signs_of_life() -> None:
    """What was started by a worker that has been killed says nothing any more."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    from flows import automations

    with (
        contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError),
        get_client(sync_client=True) as client,
    ):
        automations.await_signs_of_life(client)


def _ask(client: SyncPrefectClient, url: str) -> None:
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    if problem := client.api_healthcheck():
        raise NotUp(
            f"Prefect at {url} does not answer ({store.brief(problem)}); start it, or "
            "`unset PREFECT_API_URL`, and `tunetrail up` starts one"
        )
    try:
        client.read_work_pools(limit=1)
    except (PrefectHTTPStatusError, httpx.HTTPStatusError) as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        raise NotUp(
            f"Prefect at {url} does not let you in (401); put USER:PASSWORD into "
            "PREFECT_API_AUTH_STRING"
        ) from error


def _check_account(mlflow: Service) -> None:
    """The worker registers candidates in somebody's name: see that MLflow knows it."""
    os.environ["MLFLOW_TRACKING_URI"] = mlflow.url
    try:
        store.connect()
    except store.NotLetIn as error:
        raise NotUp(
            f"{error}; the worker needs an account: `tunetrail server user add NAME --role trainer`, "
            f"and {error.remedy}"
        ) from error


def _worker(prefect: Service, mlflow: Service) -> Child:
    environment = _plain_environment("PREFECT_SERVER_API_AUTH_STRING")
    environment |= {
        "PREFECT_API_URL": prefect.url,
        "MLFLOW_TRACKING_URI": mlflow.url,
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "5"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "WARNING",
    }
    auth = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if prefect.child and auth:
        environment["PREFECT_API_AUTH_STRING"] = auth
    command = [sys.executable, "-m", "flows.worker"]
    return Child("the worker", command, environment, FOLDER / "worker.log")


def _wait_online(worker: Child) -> None:
    from prefect.client.orchestration import get_client

    from flows.worker import POOL, name

    deadline = time.monotonic() + WORKER_SECONDS
    with get_client(sync_client=True) as client:
        while worker.ended() is None and time.monotonic() < deadline:
            response = client.request(
                "POST",
                "/work_pools/{work_pool_name}/workers/filter",
                path_params={"work_pool_name": POOL},
                json={},
            )
            workers = {found["name"]: found["status"] for found in response.json()}
            if workers.get(name()) == "ONLINE":
                return
            time.sleep(0.3)
    raise Down(f"the worker does not come up; {worker.log} says why")


def _stop_worker(worker: Child, tell: Tell) -> None:
    if runs := worker.count("flows.flow_run"):
        which = "a flow run" if runs == 1 else f"{runs} flow runs"
        tell(
            f"stopping {which}: Prefect shows it as crashed, training keeps a checkpoint, and the next "
            "run goes on from there"
        )
    worker.stop(STOP_RUNS_SECONDS)


def _links(options: Options, prefect: Service, mlflow: Service) -> list[str]:
    from flows.worker import POOL, name

    def whose(service: Service) -> str:
        return "" if service.child else ", which is not ours and stays up"

    lines = [
        f"Prefect  {prefect.url.removesuffix('/api')}{whose(prefect)}",
        f"MLflow   {mlflow.url}{whose(mlflow)}",
        f"worker   {name()}, for the work pool {POOL}",
        f"logs     {FOLDER}",
    ]
    if prefect.child or mlflow.child:
        lines.append("Another terminal uses the same servers after")
    if prefect.child:
        lines.append(f"  export PREFECT_API_URL={prefect.url}")
    if mlflow.child:
        lines.append(f"  export MLFLOW_TRACKING_URI={mlflow.url}")
    return [*lines, "Ctrl-C stops " + ("all of it." if prefect.child else "the worker.")]
