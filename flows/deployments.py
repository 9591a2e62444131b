"""What prefect.yaml says, brought to a Prefect server: its deployments, the work pool, the queues.

`prefect deploy` reads the file.  It is called only when the file or the code of a flow has changed:
what somebody changes in Prefect's pages, a schedule above all, stays until then.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.flow_run import RETRIES
from flows.worker import POOL
from tasks.lineage.stage import FAULT, StageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

FILE = Path("prefect.yaml")
APPLIED = "tunetrail_applied"
"""A variable of Prefect: the hash of what was applied last."""

QUEUES = {"in-turn": 1, "at-once": None}
"""How many flow runs of each queue run at the same time, where somebody has not changed it."""

PATIENCE_SECONDS = 300
PAGE = 200


class BadFile(StageError):
    """prefect.yaml does not describe deployments. The message says where."""


class NotDeployed(StageError):
    """Prefect refuses a deployment. The message has its words."""

    exit_code = FAULT


@dataclass(frozen=True)
class Wanted:
    """A deployment, as prefect.yaml names it."""

    name: str
    entrypoint: str

    @property
    def code(self) -> Path:
        """The file that the flow is in."""
        return Path(self.entrypoint.partition(":")[0])


def wanted(file: Path = FILE) -> list[Wanted]:
    """The deployments of the file.

    Raises:
        BadFile: when it is not there, or one lacks a name or a flow.
    """
    try:
        entries = YAML(typ="safe").load(file.read_text(encoding="utf-8"))["deployments"]
        found = [Wanted(str(entry["name"]), str(entry["entrypoint"])) for entry in entries]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise BadFile(
            f"{file} does not list deployments with name and entrypoint ({error!r}); "
            f"`git checkout {file}` brings the shipped one back"
        ) from error
    for each in found:
        if not each.code.is_file():
            raise BadFile(f"{file}: {each.name}: there is no file {each.code}")
    return found


def apply(client: SyncPrefectClient, url: str, file: Path = FILE) -> tuple[dict[str, UUID], bool]:
    """Make sure of pool, queues and deployments.

    Returns:
        The deployments by name, and whether they were brought there now.

    Raises:
        BadFile: as `wanted`.
        NotDeployed: when `prefect deploy` fails, or leaves one of them out.
    """
    deployments = wanted(file)
    _make_pool(client)
    digest = _digest(file, deployments)
    there = _read(client)
    applied = client.read_variable_by_name(APPLIED)
    if applied and applied.value == digest and all(each.name in there for each in deployments):
        return there, False
    said = _deploy(url, file)
    there = _read(client)
    missing = [each.name for each in deployments if each.name not in there]
    if missing:
        raise NotDeployed(f"prefect deploy left out {', '.join(missing)}:\n{said}")
    _note(client, digest)
    return there, True


def forget_missed(client: SyncPrefectClient, deployments: Iterable[UUID]) -> int:
    """Delete what schedules planned while nothing was there to start it, but the newest run of each
    deployment: one check answers for all that a night has missed, and what follows need not wait.

    Returns:
        how many runs were deleted.
    """
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    late = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(any_=list(deployments)),
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED])
        ),
        next_scheduled_start_time=filters.FlowRunFilterNextScheduledStartTime.model_validate(
            {"before_": datetime.now(UTC)}
        ),
    )
    found: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_run_filter=late,
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=PAGE,
        offset=len(found),
    ):
        found += page
    planned = [run for run in found if run.auto_scheduled]
    newest = {run.deployment_id: run.id for run in reversed(planned)}
    missed = [run.id for run in planned if run.id != newest[run.deployment_id]]
    for each in missed:
        client.delete_flow_run(each)
    return len(missed)


def _make_pool(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=template)
        )
    for name, limit in QUEUES.items():
        try:
            client.read_work_queue_by_name(name, work_pool_name=POOL)
        except ObjectNotFound:
            _make_queue(client, name, limit)


def _make_queue(client: SyncPrefectClient, name: str, limit: int | None) -> None:
    response = client.request(
        "POST",
        "/work_pools/{work_pool_name}/queues",
        path_params={"work_pool_name": POOL},
        json={"name": name, "concurrency_limit": limit},
    )
    response.raise_for_status()


def _read(client: SyncPrefectClient) -> dict[str, UUID]:
    """All deployments of the pool by name."""
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    only = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return {found.name: found.id for found in client.read_deployments(work_pool_filter=only)}


def _digest(file: Path, deployments: list[Wanted]) -> str:
    import prefect

    digest = hashlib.sha256(prefect.__version__.encode())
    for path in sorted({file, *(each.code for each in deployments)}):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _deploy(url: str, file: Path) -> str:
    from prefect.settings import PREFECT_API_AUTH_STRING

    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_CLIENT_MAX_RETRIES": RETRIES,  # a server that catches up says 503 at first
    }
    if password := PREFECT_API_AUTH_STRING.value():  # a setting of this process, maybe no variable
        environment["PREFECT_API_AUTH_STRING"] = password
    environment.pop("TUNETRAIL_PROJECT", None)  # each worker fills in its own
    try:
        done = subprocess.run(
            [*command, "--prefect-file", str(file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotDeployed(f"prefect deploy took more than {PATIENCE_SECONDS} s") from error
    said = "\n".join(done.stdout.splitlines()[-20:])
    if done.returncode:
        raise NotDeployed(f"prefect deploy ended with code {done.returncode}:\n{said}")
    return said


def _note(client: SyncPrefectClient, digest: str) -> None:
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    if client.read_variable_by_name(APPLIED):
        client.update_variable(VariableUpdate(name=APPLIED, value=digest))
    else:
        client.create_variable(VariableCreate(name=APPLIED, value=digest))
