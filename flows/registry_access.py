"""Who may do what on a team's MLflow server: the roles `trainer` and `reviewer`, and their users.

MLflow's auth app adds up what a user was granted on a thing by name and on all things of its kind,
and the most of it counts; nobody is granted anything by default.  Two things follow.  Who makes a
registered model or an experiment owns it, so what only reviewers may write is made here, before the
server starts, and belongs to nobody.  And a right on all runs or all versions would be one on those
of the audit record and of the champion too, so trainers get none of that kind.

All of this goes straight to the database: it needs no server, and no password crosses a network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.lineage import audit, courier, store
from tasks.lineage.review import CANDIDATES
from tasks.lineage.stage import FAULT, StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLES = ("trainer", "reviewer")

ADMIN = "admin"
"""The user that MLflow lets do everything; nobody needs it for daily work."""
SHORTEST_PASSWORD = 12
"""Characters, says MLflow."""

_PROXIED = "mlflow-artifacts:/"
"""Where runs keep artifacts: with the server, which checks every request."""
_CONNECT_SECONDS = 5
_EVERY = "*"


class AccessError(StageError):
    """A user or a registered model is not as it must be."""


class DatabaseProblem(StageError):
    """The database cannot be used."""

    exit_code = FAULT


class Grant(NamedTuple):
    """What a role may do with a thing, or with all of its kind."""

    kind: str
    thing: str
    level: str
    """READ; EDIT: change too; MANAGE: delete and grant too."""


def grants(name: str, runs: str, record: str) -> dict[str, list[Grant]]:
    """What each role may do.

    Args:
        name: `register.name`; `<name>` is what is served, `<name>-candidates` what trainers make.
        runs: the id of the experiment with the runs of the pipeline.
        record: the id of the experiment with the audit record.
    """
    read_all = [Grant("registered_model", _EVERY, "READ"), Grant("experiment", _EVERY, "READ")]
    return {
        "trainer": [
            *read_all,
            # to clear away what a killed upload has left needs the right to delete
            Grant("registered_model", f"{name}{CANDIDATES}", "MANAGE"),
            Grant("experiment", runs, "MANAGE"),
        ],
        "reviewer": [
            *read_all,
            # to take away an alias needs the right to delete; versions are kept by the next line,
            # and with them the model, which MLflow deletes only for who may delete its versions
            Grant("registered_model", name, "MANAGE"),
            Grant("registered_model_version", _EVERY, "EDIT"),
            Grant("experiment", runs, "EDIT"),  # for the answer of `tunetrail reproduce`
            Grant("experiment", record, "EDIT"),
        ],
    }


def set_up(database: str, name: str) -> list[str]:
    """Bring the database up to date, and make what the roles need; what is there stays.

    Returns:
        What was done, a line each.

    Raises:
        DatabaseProblem: when it does not answer, or cannot be used.
        AccessError: when the audit record of `name` lies where trainers can write.
    """
    probe(database)
    with _told(database), _artifacts_proxied():
        from mlflow import MlflowClient
        from mlflow.store.db.utils import _all_tables_exist, _upgrade_db, create_sqlalchemy_engine

        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        engine = create_sqlalchemy_engine(database)
        if _all_tables_exist(engine):
            _upgrade_db(engine)
        engine.dispose()
        client = MlflowClient(database, database)  # makes the tables of a fresh database
        accounts = _accounts(database)
        runs = _experiment(client, name)
        record = _experiment(client, audit.experiment_name(name))
        audit.begin(client, name)
        _check_record(client, name, record)
        done = _revoke_ownership(accounts, name, record)
        for role, wanted in grants(name, runs, record).items():
            done += _grant(accounts, role, wanted)
        return done


def make_admin(database: str, password: str) -> bool:
    """Make the administrator. Returns False when there is one, whose password stays.

    Raises:
        DatabaseProblem: as `set_up`.
    """
    with _told(database):
        accounts = _accounts(database)
        if accounts.has_user(ADMIN):
            return False
        accounts.create_user(ADMIN, password, is_admin=True)
        return True


def add_user(database: str, name: str, password: str, role: str) -> bool:
    """Make a user with a role; of one that exists, set the password and the role.

    Returns:
        False when the user existed.

    Raises:
        AccessError: for a name or a password that cannot be.
        DatabaseProblem: as `set_up`.
    """
    if name == ADMIN:
        raise AccessError(f"{ADMIN} may do everything and has no role; choose another name")
    if len(password) < SHORTEST_PASSWORD:
        raise AccessError(
            f"the password of {name} has {len(password)} characters; take {SHORTEST_PASSWORD} or more"
        )
    probe(database)
    with _told(database):
        from mlflow import MlflowException

        accounts = _accounts(database)
        created = not accounts.has_user(name)
        if created:
            try:
                accounts.create_user(name, password)
            except MlflowException as error:
                raise AccessError(f"{name!r} cannot be a user: {store.brief(error)}") from error
        else:
            accounts.update_user(name, password=password)
        user = accounts.get_user(name)
        for other in _roles(accounts, user.id):
            accounts.unassign_role_from_user(user.id, other.id)
        accounts.assign_role_to_user(user.id, _role(accounts, role).id)
        return created


def remove_user(database: str, name: str) -> None:
    """Take away a user and all that was granted to them.

    Raises:
        AccessError: when there is none, or it is the administrator.
        DatabaseProblem: as `set_up`.
    """
    if name == ADMIN:
        raise AccessError(
            f"{ADMIN} stays: without it nobody could help a team that locked itself out"
        )
    probe(database)
    with _told(database):
        accounts = _accounts(database)
        if not accounts.has_user(name):
            known = ", ".join(users(database)) or "none"
            raise AccessError(f"there is no user {name}; known: {known}")
        accounts.delete_user(name)


def users(database: str) -> dict[str, str]:
    """The role of each user but the administrator; `no role` for one who has none."""
    probe(database)
    with _told(database):
        accounts = _accounts(database)
        return {
            user.username: ", ".join(role.name for role in _roles(accounts, user.id)) or "no role"
            for user in accounts.list_users()
            if not user.is_admin
        }


def probe(database: str) -> None:
    """Ask once and soon: MLflow would ask for minutes.

    Raises:
        DatabaseProblem: when it does not answer, or its driver is missing.
    """
    import sqlalchemy
    from sqlalchemy.engine import make_url

    patience = {"connect_timeout": _CONNECT_SECONDS} if database.startswith("postgresql") else {}
    with _told(database):
        engine = sqlalchemy.create_engine(make_url(database), connect_args=patience)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


@contextlib.contextmanager
def _told(database: str) -> Iterator[None]:
    """What a database or its driver raises, in the user's words."""
    from sqlalchemy.exc import SQLAlchemyError

    where = store.without_password(database)
    try:
        yield
    except ModuleNotFoundError as error:
        raise DatabaseProblem(
            f"{error.name} is not installed, which a server needs; `pip install -e '.[server]'`"
        ) from error
    except SQLAlchemyError as error:
        raise DatabaseProblem(
            f"the database at {where} does not answer ({store.brief(error)}); start it, or name "
            "another with --backend-store"
        ) from error


@contextlib.contextmanager
def _artifacts_proxied() -> Iterator[None]:
    """As in the server, experiments that are made here keep their artifacts with the server."""
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR

    before = os.environ.get(ARTIFACT_ROOT_ENV_VAR)
    os.environ[ARTIFACT_ROOT_ENV_VAR] = _PROXIED
    try:
        yield
    finally:
        if before is None:
            del os.environ[ARTIFACT_ROOT_ENV_VAR]
        else:
            os.environ[ARTIFACT_ROOT_ENV_VAR] = before


def _accounts(database: str) -> Any:
    """The auth app's tables, in the database of everything else, so that one backup has all."""
    with warnings.catch_warnings():  # of what MLflow's server is built on, to who runs it
        warnings.simplefilter("ignore")
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    accounts = SqlAlchemyStore()
    accounts.init_db(database)
    return accounts


def _experiment(client: MlflowClient, name: str) -> str:
    identifier = courier.experiment(client, name)
    if client.get_experiment(identifier).lifecycle_stage == "deleted":
        client.restore_experiment(identifier)
    return identifier


def _check_record(client: MlflowClient, name: str, record: str) -> None:
    run_id = client.get_registered_model(name).tags[audit.RUN_TAG]
    if client.get_run(run_id).info.experiment_id != record:
        raise AccessError(
            f"the audit record of {name} is said to be run {run_id}, which is not in the experiment "
            f"{audit.experiment_name(name)}: somebody has made {name} by hand. Rename that registered "
            "model, as its owner, then start the server again"
        )


def _revoke_ownership(accounts: Any, name: str, record: str) -> list[str]:
    """Take away what single users were granted on what only the role of reviewers may write."""
    done = []
    things = [("registered_model", name), ("prompt", name), ("experiment", record)]
    for user in accounts.list_users():
        granted = {
            (permission.resource_type, permission.resource_pattern)
            for role in accounts.list_user_roles(user.id)
            if accounts._is_synthetic_role_name(role.name)
            for permission in role.permissions
        }
        done += [
            f"{user.username} owned the {kind} {thing}, and does not any more"
            for kind, thing in things
            if (kind, thing) in granted
        ]
    for kind, thing in things:
        accounts.delete_grants_for_resource(kind, thing)
    return done


def _grant(accounts: Any, name: str, wanted: list[Grant]) -> list[str]:
    from mlflow import MlflowException
    from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

    try:
        role = _role(accounts, name)
    except MlflowException:
        role = accounts.create_role(name, DEFAULT_WORKSPACE_NAME)
    granted = {
        (permission.resource_type, permission.resource_pattern): permission
        for permission in accounts.list_role_permissions(role.id)
    }
    done = []
    for grant in wanted:
        there = granted.get((grant.kind, grant.thing))
        if there is None:
            accounts.add_role_permission(role.id, *grant)
        elif there.permission != grant.level:
            accounts.update_role_permission(there.id, grant.level)
        else:
            continue
        thing = f"every {grant.kind}" if grant.thing == _EVERY else f"{grant.kind} {grant.thing}"
        done.append(f"{name}: {grant.level} on {thing}")
    return done


def _role(accounts: Any, name: str) -> Any:
    from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

    return accounts.get_role_by_name(DEFAULT_WORKSPACE_NAME, name)


def _roles(accounts: Any, user: int) -> list[Any]:
    """A user's roles but the one in which MLflow keeps what they own."""
    return [
        role
        for role in accounts.list_user_roles(user)
        if not accounts._is_synthetic_role_name(role.name)
    ]
