"""prefect.yaml: what Prefect reads of it, and what is refused before a server is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from ruamel.yaml import YAML

from flows import automations, deployments
from flows.deployments import BadFile
from flows.pipeline import TAG
from flows.worker import POOL

ROOT = Path(__file__).parents[2]


def described() -> dict[str, Any]:
    read: dict[str, Any] = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())
    return read


@pytest.mark.parametrize("entry", described()["deployments"], ids=lambda entry: entry["name"])
def test_each_is_a_flow_of_that_name(entry: dict[str, Any]) -> None:
    from prefect.flows import load_flow_from_entrypoint

    path, _, name = entry["entrypoint"].partition(":")
    if not (ROOT / path).is_file():
        pytest.skip(f"{path} is not written yet")
    flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
    assert flow.name == entry["name"]
    assert not flow.persist_result  # which would be a pickle


def test_prefect_knows_every_key() -> None:
    """It leaves out silently what it does not know, or what it cannot read."""
    from prefect.cli.deploy._models import PrefectYamlModel

    read = PrefectYamlModel.model_validate(described())
    for entry, model in zip(described()["deployments"], read.deployments, strict=True):
        assert set(entry) <= set(type(model).model_fields)
        assert entry["tags"] == [TAG]
        assert set(entry["work_pool"]) <= set(type(model.work_pool).model_fields)
        assert model.work_pool.name == POOL
        assert model.work_pool.work_queue_name in deployments.QUEUES
        assert model.concurrency_limit is None  # whose lease ends a run while the server is away


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("deployments: [", "does not list deployments"),
        ("name: tunetrail\n", "does not list deployments"),
        ("deployments: [{name: drift}]\n", "'entrypoint'"),
        ("deployments: [{name: drift, entrypoint: 'no.py:drift'}]\n", "there is no file no.py"),
    ],
)
def test_what_describes_no_deployment_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(text)
    with pytest.raises(BadFile, match=why):
        deployments.wanted(file)
    with pytest.raises(BadFile, match=r"`git checkout .*none\.yaml`"):
        deployments.wanted(tmp_path / "none.yaml")


@pytest.mark.parametrize(("tagged", "crashes"), [([TAG], True), ([], False), (["other"], False)])
def test_a_silent_run_of_somebody_else_is_left_alone(tagged: list[str], crashes: bool) -> None:
    """Its pulse is 180 seconds where nobody has changed Prefect's own, or it has none."""
    from prefect.events.related import tags_as_related_resources
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent, Resource

    (made,) = automations.wanted("shipments", {}, None)
    trigger = EventTrigger.model_validate(made.trigger.model_dump())
    for name in (automations.HEARTBEAT, "prefect.flow-run.Completed"):
        told = ReceivedEvent(
            occurred=datetime.now(UTC),
            event=name,
            resource=Resource({"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}),
            related=[one.model_dump() for one in tags_as_related_resources(tagged)],
            id=uuid4(),
        )
        assert trigger.covers(told) == crashes


def test_only_runs_of_ours_are_asked_for_a_sign_of_life(prefect_api: None) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    @flow(name="somebody-elses")
    def other() -> None:
        pass

    with get_client(sync_client=True) as client:
        before = automations.await_signs_of_life(client)
        made = [client.create_flow_run(other, tags=tags, state=Running()) for tags in ([], [TAG])]
        try:
            assert automations.await_signs_of_life(client) == before + 1
        finally:
            for run in made:
                client.delete_flow_run(run.id)


def test_of_what_was_missed_the_newest_is_left() -> None:
    """What somebody asked for by hand is not missed, it waits."""
    drift, pipeline = uuid4(), uuid4()
    runs = [
        SimpleNamespace(id=number, deployment_id=deployment, auto_scheduled=planned)
        for number, (deployment, planned) in enumerate(
            [(drift, True), (pipeline, True), (drift, True), (pipeline, False), (drift, True)]
        )
    ]  # the newest first
    asked: list[Any] = []
    deleted: list[int] = []

    def read_flow_runs(flow_run_filter: Any, sort: Any, limit: int, offset: int) -> list[Any]:
        asked.append((flow_run_filter, sort))
        return runs[offset : offset + min(limit, 2)]  # a server gives no more than it likes

    client: Any = SimpleNamespace(read_flow_runs=read_flow_runs, delete_flow_run=deleted.append)
    assert deployments.forget_missed(client, [drift, pipeline]) == 2
    assert deleted == [2, 4]
    wanted, sort = asked[0]
    assert wanted.deployment_id.any_ == [drift, pipeline]
    assert [state.value for state in wanted.state.type.any_] == ["SCHEDULED"]
    assert wanted.next_scheduled_start_time.before_ <= datetime.now(UTC)
    assert sort.value == "EXPECTED_START_TIME_DESC"


def test_the_password_of_prefect_reaches_the_command_that_deploys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

    given: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> CompletedProcess[str]:
        given.append(env)
        return CompletedProcess(command, 0, "", "")

    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.setattr("flows.deployments.subprocess.run", run)
    deployments._deploy("http://127.0.0.1:9/api", deployments.FILE)
    with temporary_settings({PREFECT_API_AUTH_STRING: "team:a secret"}):
        deployments._deploy("http://127.0.0.1:9/api", deployments.FILE)
    assert [env.get("PREFECT_API_AUTH_STRING") for env in given] == [None, "team:a secret"]
