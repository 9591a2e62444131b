"""`tunetrail up` with real servers and a real worker: what it serves, and what becomes of a run when
something is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import served_project
from free_ports import free_port
from ruamel.yaml import YAML
from served_project import REPOSITORY, Served
from typer.testing import CliRunner

from flows import automations, events, up
from flows.cli import app
from flows.registry_access import DatabaseProblem
from flows.registry_server import BadAddress, NotServed, check_port
from flows.up import Exposed, Options, Service
from tasks.lineage.stage import FAULT, MISUSE

pytest_plugins = ("registered_project", "postgres")

NAMES = ["drift", "pipeline", "promote", "reproduce", "retrain"]


def outputs(root: Path) -> dict[str, str]:
    """The hash of every output that dvc.lock names, but for the records of what was read: the code
    that waits is none of the built project's."""
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    return {path: md5 for path, md5 in outs.items() if "record" not in path and "prov" not in path}


@pytest.fixture(scope="module")
def served(built_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests: a start takes some twenty seconds."""
    made = served_project.make(built_project, tmp_path_factory.mktemp("served"))
    made.up()
    yield made
    if made.process and made.process.poll() is None:
        made.down()


@dataclass(frozen=True)
class Webhook:
    url: str
    came: list[dict[str, str]]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """What is sent to people comes here."""
    came: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Webhook(f"http://127.0.0.1:{server.server_port}/", came)
        server.shutdown()


class TestServed:
    def test_all_deployments_are_there(self, served: Served) -> None:
        with served.client() as client:
            found = {each.name: each for each in client.read_deployments()}
            queues = {queue.name: queue for queue in client.read_work_queues()}
        assert sorted(found) == NAMES
        assert {each.work_pool_name for each in found.values()} == {"tunetrail"}
        assert [schedule.schedule.cron for schedule in found["drift"].schedules] == ["0 * * * *"]
        assert str(served.root) not in str(found["pipeline"].pull_steps)  # each worker has its own
        assert queues["in-turn"].concurrency_limit == 1
        assert found["promote"].work_queue_name == "at-once"

    def test_its_links_lead_to_the_pages(self, served: Served) -> None:
        import httpx

        said = "".join(served.said)
        for name, port in (("Prefect", served.prefect_port), ("MLflow", served.mlflow_port)):
            assert f"{name:<9}http://127.0.0.1:{port}\n" in said
            page = httpx.get(f"http://127.0.0.1:{port}/", follow_redirects=True)
            assert "<title>" in page.text

    def test_mlflow_shows_the_versions_of_this_clone(self, served: Served) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(f"http://127.0.0.1:{served.mlflow_port}")
        version = client.get_model_version("shipments-candidates", "1")
        provenance = client.download_artifacts(version.run_id, "provenance.json")
        assert Path(provenance).is_file()

    @pytest.mark.slow  # test_drift_loop shows the same with the flows themselves
    def test_drift_sets_off_a_retraining_of_that_check(self, served: Served) -> None:
        from prefect.events import Event

        event = Event(
            event=events.DRIFT_FOUND,
            resource={"prefect.resource.id": "tunetrail.model.shipments"},
            payload={"check": "20261122T134501Z-01234567", "data": "01", "reason": "new words"},
        )
        with served.client() as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
        told = served.root / "retrained.txt"
        served.until(told.exists)
        served.until(lambda: told.read_text() == "20261122T134501Z-01234567")

    def test_of_two_at_once_one_waits_and_a_killed_prefect_stops_neither(
        self, served: Served
    ) -> None:
        before = outputs(served.root)
        served.fresh()
        served.hold()
        first = served.run("pipeline/pipeline")
        served.at_work()
        second = served.run("pipeline/pipeline")
        served.child("flows.prefect_server").kill()
        served.told("Prefect ended with code -9, and was started again")
        assert served.state(second).type.value == "SCHEDULED"
        served.release()
        assert served.wait(first).type.value == "COMPLETED"
        assert served.wait(second).type.value == "COMPLETED"
        assert outputs(served.root) == before
        with served.client() as client:
            runs = [client.read_flow_run(run) for run in (first, second)]
        assert runs[0].end_time <= runs[1].start_time

    def test_a_second_one_is_refused(self, served: Served) -> None:
        second = served.start()
        said, _ = second.communicate(timeout=120)
        assert (second.returncode, "already runs in this clone" in said) == (FAULT, True)

    def test_nothing_is_done_twice_and_what_was_switched_off_stays_so(self, served: Served) -> None:
        with served.client() as client:
            there = {found.name: found.id for found in client.read_deployments()}
            assert automations.apply(client, "shipments", there, None) == []
            retrain = client.read_automations_by_name(automations.RETRAIN)[0]
            client.pause_automation(retrain.id)
            done = automations.apply(client, "parcels", there, None)
            assert done == ["automation retrain on drift: changed"]
            changed = client.read_automations_by_name(automations.RETRAIN)[0]
            assert (changed.id, changed.enabled) == (retrain.id, False)
            client.resume_automation(retrain.id)
            assert automations.apply(client, "shipments", there, None) == [
                "automation retrain on drift: changed"
            ]

    def test_people_are_told_by_the_block_that_params_name(self, served: Served) -> None:
        from prefect.blocks.notifications import SlackWebhook

        with served.client() as client:
            there = {found.name: found.id for found in client.read_deployments()}
            with pytest.raises(automations.NoBlock, match="page Blocks"):
                automations.apply(client, "shipments", there, "slack-webhook/team")
            SlackWebhook(url="http://127.0.0.1:9/hook").save("team")
            done = automations.apply(client, "shipments", there, "slack-webhook/team")
            assert len(done) == 4
            assert all(line.endswith(": made") for line in done)
            assert automations.apply(client, "shipments", there, "slack-webhook/team") == []
            done = automations.apply(client, "shipments", there, None)
            assert len(done) == 4
            assert all(line.endswith(": removed") for line in done)

    def test_people_are_told_once(self, served: Served, webhook: Webhook) -> None:
        from prefect.blocks.notifications import CustomWebhookNotificationBlock
        from prefect.settings import PREFECT_API_URL, temporary_settings

        said = {"subject": "{{subject}}", "body": "{{body}}"}
        block = CustomWebhookNotificationBlock(name="team", url=webhook.url, json_data=said)
        payload = {"check": "c", "candidate": "shipments-candidates@4", "verdict": "pass"}
        with served.client() as client, temporary_settings({PREFECT_API_URL: served.url}):
            block.save("team", overwrite=True)
            there = {found.name: found.id for found in client.read_deployments()}
            automations.apply(client, "shipments", there, "custom-webhook/team")
            for again in (True, False):  # the second would come last
                told = {**payload, "reason": f"again: {again}"}
                events.tell(events.CANDIDATE_WAITS, "shipments", told, again)
            served.until(lambda: bool(webhook.came))
            automations.apply(client, "shipments", there, None)
        (came,) = webhook.came
        assert came["subject"] == "shipments-candidates@4 waits for reviewers"
        assert "Verdict: pass\n\nagain: False\n" in came["body"]

    def test_ctrl_c_ends_it_in_order_and_the_next_run_finishes(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = outputs(served.root)
        served.fresh()
        served.hold()
        served.run("pipeline/pipeline")
        served.at_work()
        stage = served.child("tasks.sft")
        assert served.down() == 0
        assert "stopping a flow run" in "".join(served.said)
        assert served.said[-1] == "All has stopped.\n"
        assert not stage.is_running()
        for port in (served.prefect_port, served.mlflow_port):
            check_port("127.0.0.1", port)
        served.release()
        monkeypatch.chdir(served.root)
        from registered_project import dvc

        dvc("repro")
        assert outputs(served.root) == before


@pytest.mark.slow
class TestKilled:
    @pytest.fixture
    def at_work(self, built_project: Path, tmp_path: Path) -> Served:
        made = served_project.make(built_project, tmp_path)
        made.up()
        made.fresh()
        made.hold()
        return made

    def test_a_worker_takes_its_runs_along_and_comes_back(self, at_work: Served) -> None:
        run = at_work.run("pipeline/pipeline")
        at_work.at_work()
        stage = at_work.child("tasks.sft")
        at_work.child("flows.worker").kill()
        at_work.told("the worker ended with code -9, and was started again")
        assert at_work.wait(run).type.value == "CRASHED"
        at_work.until(lambda: not stage.is_running())
        at_work.release()
        again = at_work.run("pipeline/pipeline")
        assert at_work.wait(again).type.value == "COMPLETED"
        assert at_work.down() == 0

    def test_a_run_without_a_heartbeat_is_marked_as_crashed(self, at_work: Served) -> None:
        run = at_work.run("pipeline/pipeline")
        at_work.at_work()
        flow_run = at_work.child("flows.flow_run")
        os.kill(at_work.child("flows.worker").pid, signal.SIGKILL)
        flow_run.kill()
        state = at_work.wait(run, "CRASHED", seconds=automations.SILENCE_SECONDS + 120)
        assert "no sign of life" in state.message
        at_work.release()
        again = at_work.run("pipeline/pipeline")
        assert at_work.wait(again).type.value == "COMPLETED"
        assert at_work.down() == 0

    def test_up_itself_leaves_nothing_behind(self, at_work: Served) -> None:
        at_work.run("pipeline/pipeline")
        at_work.at_work()
        assert at_work.process
        children = at_work.child("flows.worker").parent().children(recursive=True)
        at_work.process.kill()
        at_work.until(lambda: not any(child.is_running() for child in children), 60)


@pytest.mark.slow
def test_on_postgres_with_a_password(built_project: Path, tmp_path: Path, postgres: str) -> None:
    import httpx

    made = served_project.make(
        built_project,
        tmp_path,
        PREFECT_SERVER_DATABASE_CONNECTION_URL=postgres,
        PREFECT_SERVER_API_AUTH_STRING="team:a secret of us",
    )
    made.up()
    refused = httpx.post(f"{made.url}/work_pools/filter", json={})
    assert refused.status_code == httpx.codes.UNAUTHORIZED
    run = made.run("pipeline/pipeline")
    assert made.wait(run).type.value == "COMPLETED"
    assert made.down() == 0
    assert not (made.home / ".prefect" / "prefect.db").exists()
    assert "secret" not in "".join([*made.said, *made.logs()])


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None is named: not by the environment, and not by other tests."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for name in ("MLFLOW_TRACKING_URI", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def options(host: str = "127.0.0.1", accounts: bool = False) -> Options:
    return Options(host, 4200, 5000, None, None, accounts)


@pytest.mark.usefixtures("no_server")
def test_a_port_that_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NotServed, match=rf"port {port} .* in use.* --prefect-port"):
            up._prefect(Options("127.0.0.1", port, 5000, None, None, False))


@pytest.mark.usefixtures("no_server")
def test_other_machines_need_a_password() -> None:
    with pytest.raises(Exposed, match="USER:PASSWORD into PREFECT_SERVER_API_AUTH_STRING"):
        up._prefect(options(host="0.0.0.0"))
    with pytest.raises(Exposed, match="--accounts"):
        up._mlflow(options(host="0.0.0.0"), "shipments", print)


def test_a_server_that_is_named_is_used_unless_it_is_the_one_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    port = free_port()
    asked = Options("127.0.0.1", port, 5000, None, None, False)
    with temporary_settings({PREFECT_API_URL: "http://prefect.example.com:4200/api"}):
        assert up._prefect(asked) == Service("http://prefect.example.com:4200/api", None)
    with temporary_settings({PREFECT_API_URL: f"http://localhost:{port}/api"}):
        ours = up._prefect(asked)
        assert (ours.url, ours.child is None) == (f"http://127.0.0.1:{port}/api", False)
        with socket.socket() as somebody:
            somebody.bind(("127.0.0.1", port))
            somebody.listen()
            assert up._prefect(asked) == Service(f"http://localhost:{port}/api", None)


def test_a_team_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(up, "FOLDER", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        done = CliRunner().invoke(app, ["up"])
        assert (done.exit_code, "MLflow at http://127.0.0.1:9 does not answer" in done.output) == (
            FAULT,
            True,
        )
        monkeypatch.setattr(up, "_mlflow", lambda *_: Service("http://127.0.0.1:9", None))
        done = CliRunner().invoke(app, ["up"])
    assert (done.exit_code, "`unset PREFECT_API_URL`" in done.output) == (FAULT, True)


def test_a_database_of_prefect_gets_its_driver() -> None:
    for named, wanted in (
        ("postgresql://p@db/x", "postgresql+asyncpg://p@db/x"),
        ("postgresql+asyncpg://p@db/x", "postgresql+asyncpg://p@db/x"),
        ("sqlite:////x.db", "sqlite+aiosqlite:////x.db"),
    ):
        assert up.prefect_database(named) == wanted
    with pytest.raises(BadAddress, match=r"mysql://db/x is no database for Prefect"):
        up.prefect_database("mysql://me:secret@db/x")


@pytest.mark.usefixtures("no_server")
def test_a_database_of_mlflow_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Options("127.0.0.1", 4200, free_port(), None, "postgresql://me@127.0.0.1:9/x", False)
    with pytest.raises(DatabaseProblem, match=r"127.0.0.1:9/x does not answer"):
        up._mlflow(dead, "shipments", print)
    monkeypatch.setitem(sys.modules, "psycopg2", None)  # as if it were not installed
    with pytest.raises(DatabaseProblem, match=r"psycopg2.*`pip install -e '.\[server\]'`"):
        up._mlflow(dead, "shipments", print)


@pytest.mark.parametrize("option", ["--prefect-database", "--backend-store"])
def test_no_password_on_the_command_line(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    done = CliRunner().invoke(app, ["up", option, "postgresql://me:secret@db/x"])
    assert (done.exit_code, "secret" in done.output) == (MISUSE, False)
