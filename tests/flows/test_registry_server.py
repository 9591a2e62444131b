"""A team's MLflow server on sqlite and on PostgreSQL: who is let in, and who may promote."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from free_ports import free_port
from promotable import ASKED, REVIEWER, Team
from typer.testing import CliRunner

from flows import registry_access, registry_server
from flows.cli import app
from flows.registry_access import AccessError, DatabaseProblem
from flows.registry_server import BadAddress, Home, NotServed
from tasks.lineage import audit, promotion, store, submission
from tasks.lineage.registry import RegistryError
from tasks.lineage.stage import FAULT, MISUSE

pytest_plugins = ("postgres", "work_trees")

ROOT = Path(__file__).parents[2]
NAME, CANDIDATES = "shipments", "shipments-candidates"
PASSWORDS = {"tina": "tina trains models", "rita": "rita reviews them"}
DEAD = "postgresql+psycopg2://mlflow:secret@127.0.0.1:9/mlflow"
"""The discard service, which nobody runs."""

Reply = requests.Response
Ask = Callable[["Account", "World"], Reply]


class Account:
    """Requests as one user; as nobody without a name."""

    def __init__(self, url: str, name: str | None, password: str = "") -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        if name is not None:
            self.session.auth = (name, password)

    def __call__(self, method: str, path: str, **body: Any) -> Reply:
        """`path` below /api/2.0/mlflow, unless it begins with a slash."""
        where = path if path.startswith("/") else f"/api/2.0/mlflow/{path}"
        if method == "GET":
            return self.session.get(f"{self.url}{where}", params=body, timeout=60)
        return self.session.request(method, f"{self.url}{where}", json=body, timeout=60)

    def done(self, method: str, path: str, **body: Any) -> Any:
        reply = self(method, path, **body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def put(self, run: tuple[str, str], name: str) -> Reply:
        """Upload an artifact."""
        path = f"/api/2.0/mlflow-artifacts/artifacts/{run[0]}/{run[1]}/artifacts/{name}"
        return self.session.put(f"{self.url}{path}", data=b"{}", timeout=60)


@dataclass(frozen=True)
class World:
    """A server on which a trainer has registered a candidate, and a reviewer has promoted it."""

    home: Home
    database: str
    url: str
    runs: str
    record: tuple[str, str]
    """Experiment and run of the audit record."""
    run: str
    """Of the candidate."""

    def account(self, name: str | None) -> Account:
        if name == registry_access.ADMIN:
            return Account(self.url, name, self.home.admin_password.read_text())
        return Account(self.url, name, PASSWORDS.get(name or "", ""))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.getfixturevalue(f"on_{request.param}")
    return made


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with _served(tmp_path_factory.mktemp("sqlite"), None) as made:
        yield made


@pytest.fixture(scope="module")
def on_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with _served(tmp_path_factory.mktemp("postgres"), postgres) as made:
        yield made


@contextmanager
def _served(folder: Path, named: str | None) -> Iterator[World]:
    home = Home(folder / "server")
    database = registry_server.choose_database(home, named)
    registry_server.prepare(home, database, NAME)
    for name, role in (("tina", "trainer"), ("rita", "reviewer")):
        assert registry_access.add_user(database, name, PASSWORDS[name], role)
    port = free_port()
    with registry_server.serving(home, database, str(home.artifacts), "127.0.0.1", port, 1):
        yield _with_a_champion(home, database, f"http://127.0.0.1:{port}")


def _with_a_champion(home: Home, database: str, url: str) -> World:
    tina, rita = (Account(url, name, PASSWORDS[name]) for name in ("tina", "rita"))
    experiments = tina.done("GET", "experiments/search", max_results=9)["experiments"]
    ids = {found["name"]: found["experiment_id"] for found in experiments}
    run = tina.done("POST", "runs/create", experiment_id=ids[NAME])["run"]["info"]
    tina.done("POST", "runs/log-metric", run_id=run["run_id"], key="loss", value=1, timestamp=0)
    assert tina.put((ids[NAME], run["run_id"]), "model.txt").status_code == 200
    tina.done("POST", "registered-models/create", name=CANDIDATES)
    made = {"source": f"{run['artifact_uri']}/model.txt", "run_id": run["run_id"]}
    tina.done("POST", "model-versions/create", name=CANDIDATES, **made)
    tina.done("POST", "registered-models/alias", name=CANDIDATES, alias="challenger", version="1")
    model = rita.done("GET", "registered-models/get", name=NAME)["registered_model"]
    tags = {tag["key"]: tag["value"] for tag in model["tags"]}
    copied = {"source": f"models:/{CANDIDATES}/1", "run_id": run["run_id"]}
    rita.done("POST", "model-versions/create", name=NAME, **copied)
    rita.done("POST", "registered-models/alias", name=NAME, alias="champion", version="1")
    record = (ids[audit.experiment_name(NAME)], tags[audit.RUN_TAG])
    return World(home, database, url, ids[NAME], record, run["run_id"])


def post(path: str, **body: Any) -> Ask:
    return lambda account, world: account("POST", path, **body)


def send(method: str, path: str, **body: Any) -> Ask:
    return lambda account, world: account(method, path, **body)


def on_record(path: str, **body: Any) -> Ask:
    return lambda account, world: account("POST", path, run_id=world.record[1], **body)


def in_record(path: str, **body: Any) -> Ask:
    return lambda account, world: account("POST", path, experiment_id=world.record[0], **body)


def at(version: str = "1") -> dict[str, str]:
    return {"name": NAME, "version": version}


RIGHTS = "/api/3.0/mlflow/users/permissions/grant"
ROLES = "/api/3.0/mlflow/roles"
A_GRANT = {"resource_type": "registered_model", "resource_id": NAME, "permission": "MANAGE"}

PROMOTION: dict[str, Ask] = {
    "a version": post("model-versions/create", name=NAME, source=f"models:/{CANDIDATES}/1"),
    "the alias": post("registered-models/alias", name=NAME, alias="champion", version="1"),
    "another alias": post("registered-models/alias", name=NAME, alias="best", version="1"),
    "no alias": send("DELETE", "registered-models/alias", name=NAME, alias="champion"),
    "a version's tag": post("model-versions/set-tag", **at(), key="promoted.by", value="tina"),
    "no version's tag": send("DELETE", "model-versions/delete-tag", **at(), key="identity"),
    "a description": send("PATCH", "model-versions/update", **at(), description="mine"),
    "a stage": post("model-versions/transition-stage", **at(), stage="Production"),
    "no version": send("DELETE", "model-versions/delete", **at()),
    "the model's description": send(
        "PATCH", "registered-models/update", name=NAME, description="x"
    ),
    "the model's tag": post("registered-models/set-tag", name=NAME, key=audit.RUN_TAG, value="x"),
    "no model's tag": send("DELETE", "registered-models/delete-tag", name=NAME, key=audit.HEAD_TAG),
    "another name": post("registered-models/rename", name=NAME, new_name="old"),
    "no model": send("DELETE", "registered-models/delete", name=NAME),
    "a model that is a prompt": post(
        "registered-models/set-tag", name=NAME, key="mlflow.prompt.is_prompt", value="true"
    ),
}
RECORD: dict[str, Ask] = {
    "an entry": on_record("runs/log-parameter", key="entry.000001", value="x"),
    "entries": on_record("runs/log-batch", params=[{"key": "entry.000001", "value": "x"}]),
    "a tag": on_record("runs/set-tag", key="a", value="b"),
    "no run": on_record("runs/delete"),
    "another run": in_record("runs/create"),
    "a logged model": in_record("logged-models", name="model"),
    "no experiment": in_record("experiments/delete"),
    "another name of the record": in_record("experiments/update", new_name="mine"),
    "an artifact": lambda account, world: account.put(world.record, "entry"),
}
RIGHT: dict[str, Ask] = {
    "my right": post(RIGHTS, username="tina", **A_GRANT),
    "my right to the record": lambda account, world: account(
        "POST",
        RIGHTS,
        username="tina",
        resource_type="experiment",
        resource_id=world.record[0],
        permission="EDIT",
    ),
    "a right to all": post(RIGHTS, username="tina", **{**A_GRANT, "resource_id": "*"}),
    "my role": post(f"{ROLES}/assign", username="tina", role_id=2),
    "a role": post(f"{ROLES}/create", name="boss", workspace="default"),
    "the role's right": post(
        f"{ROLES}/permissions/add",
        role_id=1,
        resource_type="registered_model",
        resource_pattern=NAME,
        permission="MANAGE",
    ),
    "a user": post("users/create", username="eve", password="a long password"),
    "an administrator": send("PATCH", "users/update-admin", username="tina", is_admin=True),
    "rita's password": send("PATCH", "users/update-password", username="rita", password="x" * 12),
    "a webhook": post("webhooks", name="w", url="http://127.0.0.1:9", events=[]),
    "a file anywhere": lambda account, world: account.session.put(
        f"{account.url}/api/2.0/mlflow-artifacts/artifacts/anywhere", data=b"", timeout=60
    ),
}
EVERY = {**PROMOTION, **RECORD, **RIGHT}


@pytest.mark.slow
@pytest.mark.parametrize("what", EVERY)
def test_a_trainer_may_not(world: World, what: str) -> None:
    reply = EVERY[what](world.account("tina"), world)
    assert reply.status_code == 403, reply.text


@pytest.mark.slow
@pytest.mark.parametrize("what", EVERY)
def test_who_gives_no_name_is_not_let_in(world: World, what: str) -> None:
    assert EVERY[what](world.account(None), world).status_code == 401


def test_on_postgresql_too_only_a_reviewer_promotes(
    on_postgres: World, pipeline_without_onnx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_postgres.database.startswith("postgresql")
    for ask in PROMOTION.values():
        assert ask(on_postgres.account(None), on_postgres).status_code == 401
        assert ask(on_postgres.account("tina"), on_postgres).status_code == 403
    check_only_a_reviewer_promotes(on_postgres, pipeline_without_onnx, monkeypatch)


def test_nothing_is_read_without_a_password_that_fits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for account in (world.account(None), Account(world.url, "tina", "guessed it wrong")):
        assert account("GET", "registered-models/get", name=NAME).status_code == 401
        assert account("GET", "experiments/search", max_results=1).status_code == 401
        assert account("GET", "/").status_code == 401
        assert account("GET", "/graphql").status_code == 401
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.url)
    with pytest.raises(store.NotLetIn, match=r"does not let you in \(401\)"):
        store.connect()


def test_a_trainer_reads_the_champion_and_finds_no_way_round(world: World) -> None:
    tina = world.account("tina")
    champion = tina.done("GET", "registered-models/alias", name=NAME, alias="champion")
    assert champion["model_version"]["version"] == "1"
    # a name that is taken cannot be taken again, whoever asks
    for reply in (
        tina("POST", "registered-models/rename", name=CANDIDATES, new_name=NAME),
        tina("POST", "registered-models/create", name=NAME),
    ):
        assert reply.status_code == 400
        assert reply.json()["error_code"] == "RESOURCE_ALREADY_EXISTS"
    # who makes a registered model owns that one, and no other
    tina.done("POST", "registered-models/create", name="tinas")
    assert PROMOTION["the alias"](tina, world).status_code == 403
    tina.done("DELETE", "registered-models/delete", name="tinas")


def test_a_trainer_clears_away_what_a_killed_upload_has_left(world: World) -> None:
    tina = world.account("tina")
    run = tina.done("POST", "runs/create", experiment_id=world.runs)["run"]["info"]["run_id"]
    model = tina.done("POST", "logged-models", experiment_id=world.runs, source_run_id=run)
    tina.done("DELETE", f"logged-models/{model['model']['info']['model_id']}")
    tina.done("POST", "runs/delete", run_id=run)
    made = tina.done("POST", "model-versions/create", name=CANDIDATES, source=f"models:/{NAME}/1")
    version = made["model_version"]["version"]
    tina.done("DELETE", "model-versions/delete", name=CANDIDATES, version=version)


REVIEWER_MAY_NOT = {
    what: EVERY[what]
    for what in (
        *("no version", "no model", "no run", "no experiment"),
        *("my role", "a role", "the role's right", "a user", "an administrator", "a webhook"),
    )
} | {
    "a candidate": post("model-versions/create", name=CANDIDATES, source=f"models:/{NAME}/1"),
    "the challenger": post(
        "registered-models/alias", name=CANDIDATES, alias="challenger", version="1"
    ),
    "no candidate": send("DELETE", "model-versions/delete", name=CANDIDATES, version="1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REVIEWER_MAY_NOT)
def test_a_reviewer_may_not(world: World, what: str) -> None:
    reply = REVIEWER_MAY_NOT[what](world.account("rita"), world)
    assert reply.status_code == 403, reply.text


def test_a_reviewer_notes_the_answer_of_reproduce(world: World) -> None:
    rita = world.account("rita")
    tag = {"key": "reproduced", "value": "identical"}
    rita.done("POST", "model-versions/set-tag", name=CANDIDATES, version="1", **tag)
    assert rita.put((world.runs, world.run), "reproductions/reproduction-1.json").status_code == 200


def test_a_user_without_a_role_reads_nothing(world: World) -> None:
    world.account("admin").done("POST", "users/create", username="eve", password="a long password")
    eve = Account(world.url, "eve", "a long password")
    assert eve("GET", "registered-models/get", name=NAME).status_code == 403
    assert eve.done("GET", "registered-models/search").get("registered_models", []) == []
    assert registry_access.users(world.database)["eve"] == "no role"
    registry_access.remove_user(world.database, "eve")
    assert eve("GET", "registered-models/get", name=NAME).status_code in (401, 403, 404)
    time.sleep(registry_server.PASSWORD_SECONDS)
    assert eve("GET", "registered-models/search").status_code == 401


def test_what_a_trainer_owned_before_is_theirs_no_more(world: World) -> None:
    tina = world.account("tina")
    audited = audit.experiment_name("parcels")
    tina.done("POST", "registered-models/create", name="parcels")
    tina.done("POST", "experiments/create", name=audited)
    tell = registry_access.set_up(world.database, "parcels")
    assert "tina owned the registered_model parcels, and does not any more" in tell
    assert any(line.startswith("tina owned the experiment") for line in tell)
    reply = tina("POST", "registered-models/set-tag", name="parcels", key="a", value="b")
    assert reply.status_code == 403
    assert registry_access.set_up(world.database, "parcels") == []
    tina.done("GET", "registered-models/get", name=NAME)  # the first name's roles are as before


def test_a_record_where_trainers_write_is_refused(world: World) -> None:
    tina = world.account("tina")
    tag = {"key": audit.RUN_TAG, "value": world.run}
    tina.done("POST", "registered-models/create", name="forged", tags=[tag])
    with pytest.raises(AccessError, match=r"run \w+, which is not in the experiment forged-audit"):
        registry_access.set_up(world.database, "forged")


def test_a_role_changes_with_the_password(world: World) -> None:
    assert registry_access.add_user(world.database, "max", "first password", "trainer")
    assert not registry_access.add_user(world.database, "max", "second password", "reviewer")
    assert registry_access.users(world.database)["max"] == "reviewer"
    assert (
        Account(world.url, "max", "first password")("GET", "experiments/search").status_code == 401
    )
    may = Account(world.url, "max", "second password")
    may.done("POST", "registered-models/set-tag", name=NAME, key="a", value="b")
    registry_access.remove_user(world.database, "max")


def test_only_a_reviewer_promotes(
    world: World, pipeline_without_onnx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_only_a_reviewer_promotes(world, pipeline_without_onnx, monkeypatch)


def check_only_a_reviewer_promotes(
    world: World, pipeline_without_onnx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_in(name: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[name])

    def save(candidate: Any, needed: list[str], target: Path) -> None:
        shutil.copytree(candidate.served, target / "artifacts" / candidate.served.name)
        (target / "MLmodel").write_text("flavors: {}\n")

    monkeypatch.setattr(submission, "_save_model", save)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.url)
    log_in("tina")
    team = Team(pipeline_without_onnx, monkeypatch)
    reference = team.candidate()
    with pytest.raises(
        RegistryError, match=r"Permission denied.*only reviewers may promote"
    ) as told:
        promotion.promote(reference, REVIEWER, "mine", ASKED)
    assert told.value.exit_code == FAULT
    assert team.record().entries == []
    log_in("rita")
    done = team.promote(reference, comment="good on customs")
    assert (done.candidate, done.made) == (reference, True)
    assert team.aliases()["champion"] == done.version
    assert team.record().problems == []


def test_what_is_secret_is_read_by_its_owner_alone(world: World) -> None:
    home = world.home
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    for file in (home.settings, home.admin_password, home.secret_key, home.log):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    settings = configparser.ConfigParser()
    settings.read(home.settings)
    assert settings["mlflow"]["database_uri"] == world.database == home.database()
    assert "admin_password" not in settings["mlflow"]
    password = home.admin_password.read_text()
    assert len(password) >= 32
    running = subprocess.run(
        ["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True
    )
    seen = running.stdout + home.log.read_text()
    assert password not in seen
    assert "50%25" not in seen
    assert home.secret_key.read_text() not in seen


def test_a_second_start_changes_nothing(world: World) -> None:
    files = [world.home.admin_password, world.home.secret_key, world.home.settings]
    before = [file.read_text() for file in files]
    assert registry_server.prepare(world.home, world.database, NAME) == []
    assert [file.read_text() for file in files] == before
    assert registry_server.choose_database(world.home, None) == world.database


def test_artifacts_go_through_the_server(world: World) -> None:
    assert (world.home.artifacts / world.runs / world.run / "artifacts" / "model.txt").exists()
    record = world.account("tina").done("GET", "runs/get", run_id=world.record[1])["run"]["info"]
    assert record["artifact_uri"].startswith("mlflow-artifacts:/")


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(NotServed, match=f"port {port} of 127.0.0.1 is in use") as told:
            registry_server.serve(
                Home(tmp_path / "server"), "sqlite:///", "", "127.0.0.1", port, 1, NAME, print
            )
    assert told.value.exit_code == FAULT
    assert not (tmp_path / "server").exists()
    with pytest.raises(NotServed, match="cannot be listened on"):
        registry_server.check_port("192.0.2.1", 0)


def test_a_database_that_is_down_is_told_without_its_password(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseProblem) as told:
        registry_server.prepare(Home(tmp_path / "server"), DEAD, NAME)
    assert time.monotonic() - began < 30
    assert told.value.exit_code == FAULT
    assert str(told.value).startswith(
        "the database at postgresql+psycopg2://127.0.0.1:9/mlflow does not answer"
    )
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("postgresql://mlflow@db/mlflow", False),
        ("postgresql://mlflow:secret@db/mlflow", True),
        ("postgresql://db/mlflow?user=m&password=secret", True),
        ("sqlite:////srv/mlflow.db", False),
        ("nonsense", False),
    ],
)
def test_a_password_in_an_address_is_seen(address: str, holds: bool) -> None:
    assert registry_server.has_password(address) is holds


def test_other_databases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAddress, match=r"mysql://db/x is no database for this; write postgresql"):
        registry_server.choose_database(Home(tmp_path), "mysql://me:secret@db/x")
    assert (
        registry_server.choose_database(Home(tmp_path), None) == f"sqlite:///{tmp_path}/mlflow.db"
    )


def command(*arguments: str, **environment: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["server", *arguments], env=environment)
    return done.exit_code, done.output


def test_the_command_tells_its_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = str(tmp_path / "server")
    code, said = command("--backend-store", DEAD, "--folder", folder)
    assert (code, "MLFLOW_BACKEND_STORE_URI" in said, "secret" in said) == (MISUSE, True, False)
    code, said = command(
        "--folder", folder, "--port", str(free_port()), MLFLOW_BACKEND_STORE_URI=DEAD
    )
    assert (code, "does not answer" in said, "secret" in said) == (FAULT, True, False)
    code, said = command("user", "list", "--folder", str(tmp_path / "none"))
    assert (code, "`tunetrail server` makes one" in said) == (FAULT, True)
    code, said = command("user", "add", "ann", "--role", "boss", "--folder", folder)
    assert (code, said) == (MISUSE, "boss is no role; --role takes trainer or reviewer\n")


def test_users_are_added_by_command(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    where = ("--folder", str(world.home.folder))
    word = tmp_path / "word"
    word.write_text("too short\n")
    add = ("user", "add", "ann", "--role", "trainer", *where)
    code, said = command(*add, "--password-file", str(word))
    assert (code, "has 9 characters; take 12 or more" in said) == (MISUSE, True)
    code, said = command(*add, TUNETRAIL_USER_PASSWORD="long enough to do")
    assert (code, said.startswith("ann is now a trainer.\n")) == (0, True)
    word.write_text("another password\n")
    code, said = command(*add, "--password-file", str(word))
    assert (code, "with a new password" in said) == (0, True)
    Account(world.url, "ann", "another password").done("GET", "registered-models/search")
    code, said = command("user", "list", *where)
    assert (code, "ann                   trainer\n" in said) == (0, True)
    assert command("user", "remove", "ann", *where)[0] == 0
    code, said = command("user", "remove", "ann", *where)
    assert (code, said.startswith("there is no user ann; known: ")) == (MISUSE, True)
    for user in ("add", "remove"):
        role = ("--role", "trainer") if user == "add" else ()
        assert (
            command("user", user, "admin", *role, *where, TUNETRAIL_USER_PASSWORD="x" * 12)[0] == 2
        )


@pytest.mark.slow
def test_ctrl_c_ends_it_in_order(tmp_path: Path) -> None:
    port = free_port()
    line = "from flows.cli import main; main()"
    arguments = ["server", "--folder", str(tmp_path / "s"), "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-c", line, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    said = []
    for told in server.stdout:
        said.append(told)
        if told.startswith("MLflow is at"):
            break
    assert said[-1].startswith(f"MLflow is at http://127.0.0.1:{port}, its log is ")
    assert Account(f"http://127.0.0.1:{port}", None)("GET", "/health").text == "OK"
    server.send_signal(signal.SIGINT)
    assert server.stdout.read() == "The server has stopped.\n"
    assert server.wait(30) == 0
    registry_server.check_port("127.0.0.1", port)  # nothing of it is left
