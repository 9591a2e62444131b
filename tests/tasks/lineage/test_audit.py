"""The audit record: every way to tamper with it is detected, and reviewers at once make a chain."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import audit, seal, signing, store

pytest_plugins = ("work_trees",)

NAME = "shipments"


@pytest.fixture
def client(work_tree: Path) -> Any:
    return store.connect()


def write(client: Any, version: int | None, action: audit.Action = "promote") -> audit.Entry:
    """An entry, carried out."""
    while True:
        record = audit.read(client, NAME, Path())
        about = {"candidate": f"{NAME}-candidates@{version}", "version": version, "identity": "x"}
        try:
            key = signing.signing_key()
            entry = audit.append(client, record, action, "grace", "why not", about, key)
        except audit.Behind:
            continue
        client.set_registered_model_tag(NAME, audit.HEAD_TAG, entry.hash)
        return entry


def problems(client: Any) -> str:
    return "; ".join(audit.read(client, NAME, Path()).problems)


def sql(statement: str, *values: object) -> None:
    """As someone does who can write to the database: MLflow itself changes no parameter."""
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        assert database.execute(statement, values).rowcount > 0


def kept(number: int) -> dict[str, Any]:
    with closing(sqlite3.connect("mlflow.db")) as database:
        row = database.execute("select value from params where key = ?", (name(number),)).fetchone()
    return dict(json.loads(row[0]))


def keep(number: int, document: dict[str, Any]) -> None:
    text = json.dumps(document, sort_keys=True)
    sql("update params set value = ? where key = ?", text, name(number))


def name(number: int) -> str:
    return f"entry.{number:06d}"


def test_no_record_is_an_empty_one(client) -> None:
    record = audit.read(client, NAME, Path())
    assert (record.entries, record.problems, record.champion, record.changed) == (
        [],
        [],
        None,
        None,
    )


def test_entries_form_a_chain(client) -> None:
    entries = [write(client, 1), write(client, 2), write(client, 1, "rollback"), write(client, 3)]
    record = audit.read(client, NAME, Path())
    assert [entry.hash for entry in record.entries] == [entry.hash for entry in entries]
    assert record.problems == [] and record.unfinished == []
    before = ["0" * 64, *(entry.hash for entry in entries)]
    assert [entry.document["before"] for entry in entries] == before[:-1]
    assert [entry.document["from"] for entry in entries] == [None, 1, 2, 1]
    assert [entry.version for entry in record.champions] == [1, 3]
    assert record.of(2) == record.entries[1] and record.of(9) is None
    assert set(record.accepted) == {3}


def test_mlflow_itself_takes_an_entry_once(client) -> None:
    from mlflow import MlflowException

    write(client, 1)
    run = audit.begin(client, NAME)
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        client.log_param(run, name(1), "another")


def test_reviewers_at_once_make_a_chain(client) -> None:
    """Twelve entries by four threads, from the first on."""
    signing.signing_key()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: write(client, version), range(1, 13)))
    record = audit.read(client, NAME, Path())
    assert record.problems == []
    assert sorted(entry.version or 0 for entry in record.entries) == list(range(1, 13))
    experiment = client.get_experiment_by_name(audit.experiment_name(NAME))
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_record_out_of_reach_is_not_called_cut_off(client, monkeypatch) -> None:
    from mlflow import MlflowException

    write(client, 1)

    def fail(run_id: str) -> None:
        raise MlflowException("connection reset")

    monkeypatch.setattr(client, "get_run", fail)
    with pytest.raises(MlflowException, match="connection reset"):
        audit.read(client, NAME, Path())


def test_a_registered_model_made_by_hand_gets_a_record(client) -> None:
    client.create_registered_model(NAME)
    write(client, 1)
    assert problems(client) == ""


def edit(key: str, value: object) -> Callable[[], None]:
    def tamper() -> None:
        keep(2, {**kept(2), key: value})

    return tamper


def edit_and_seal_with_a_key_of_ones_own() -> None:
    document = {**kept(3), "reviewer": "someone else"}
    del document["key"], document["seal"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(Path("attacker").absolute()))
        keep(3, seal.sealed(audit.PURPOSE, document, signing.signing_key()))


def edit_and_chain_anew() -> None:
    """The last entry, with its hash written wherever it stands."""
    text = json.dumps({**kept(3), "comment": "another"}, sort_keys=True)
    sql("update params set value = ? where key = ?", text, name(3))
    tag = "update registered_model_tags set value = ? where key = 'audit.head'"
    sql(tag, audit.Entry(text).hash)


def remove(number: int) -> Callable[[], None]:
    return lambda: sql("delete from params where key = ?", name(number))


def remove_and_renumber() -> None:
    remove(2)()
    sql("update params set key = ? where key = ?", name(2), name(3))


def reorder() -> None:
    second, third = kept(2), kept(3)
    keep(2, third)
    keep(3, second)


def insert() -> None:
    sql("update params set key = ? where key = ?", name(4), name(3))
    row = "insert into params (run_uuid, key, value) select run_uuid, ?, value from params where key = ?"
    sql(row, name(3), name(1))


def insert_unsealed() -> None:
    document = {**kept(3), "number": 4, "before": audit.Entry(json.dumps(kept(3))).hash}
    row = (
        "insert into params (run_uuid, key, value) select run_uuid, ?, ? from params where key = ?"
    )
    sql(row, name(4), json.dumps(document), name(1))


def truncate_all() -> None:
    sql("delete from params where key like 'entry.%'")


def truncate_and_lose_the_tag() -> None:
    """The tag of the registered model is set back too; that of the version still tells."""
    remove(3)()
    text = json.dumps(kept(2), sort_keys=True)
    tag = "update registered_model_tags set value = ? where key = 'audit.head'"
    sql(tag, audit.Entry(text).hash)


def truncate_and_set_every_tag_back() -> None:
    """Nothing in the database tells of the third entry any more."""
    truncate_and_lose_the_tag()
    store.connect().delete_model_version_tag(NAME, "1", audit.ENTRY_TAG)


def name_another_run() -> None:
    client = store.connect()
    experiment = client.get_experiment_by_name(audit.experiment_name(NAME))
    other = client.create_run(experiment.experiment_id).info.run_id
    client.log_param(other, name(1), json.dumps(kept(1), sort_keys=True))
    client.set_registered_model_tag(NAME, audit.RUN_TAG, other)
    client.delete_registered_model_tag(NAME, audit.HEAD_TAG)


def name_a_run_elsewhere() -> None:
    client = store.connect()
    other = client.create_run("0").info.run_id
    for number in (1, 2, 3):
        client.log_param(other, name(number), json.dumps(kept(number), sort_keys=True))
    client.set_registered_model_tag(NAME, audit.RUN_TAG, other)


def forget_the_run() -> None:
    store.connect().delete_registered_model_tag(NAME, audit.RUN_TAG)


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (edit("comment", "another"), "entry 2: not what the key"),
        (edit("evidence", {}), "entry 2: not what the key"),
        (edit("seal", "AAAA"), "entry 2: not what the key"),
        (edit("seal", "no base64"), "entry 2: not what the key"),
        (edit("key", "0" * 64), "entry 2: signed by the key 0000"),
        (edit_and_seal_with_a_key_of_ones_own, "entry 3: signed by the key"),
        (edit_and_chain_anew, "entry 3: not what the key"),
        (lambda: sql("update params set value = '{' where key = ?", name(2)), "entry 2: cannot be"),
        (remove(1), "entry 1: missing; entry.000002 follows instead"),
        (remove(2), "entry 2: missing; entry.000003 follows instead"),
        (remove(3), "the newest entry was"),
        (remove_and_renumber, "entry 2: is entry 3 of shipments"),
        (reorder, "entry 2: is entry 3 of shipments"),
        (insert, "entry 3: is entry 1 of shipments"),
        (insert_unsealed, "entry 4: not what the key"),
        (truncate_all, "the newest entry was"),
        (truncate_and_lose_the_tag, "version 1 names the entry"),
        (truncate_and_set_every_tag_back, "which was read here before, is not in it any more"),
        (name_another_run, "holds another record"),
        (name_a_run_elsewhere, "which is not in the experiment shipments-audit"),
        (lambda: store.connect().delete_run(audit.begin(store.connect(), NAME)), "it was deleted"),
        (forget_the_run, "the newest entry was"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tampering_is_detected(client, tamper: Callable[[], None], told: str) -> None:
    last = [write(client, version) for version in (1, 2, 3)][-1]
    version_of(client, last)
    assert problems(client) == ""
    tamper()
    assert told in problems(client)


def version_of(client: Any, entry: audit.Entry) -> None:
    Path("model").mkdir()
    source = Path("model").absolute().as_uri()
    made = client.create_model_version(NAME, source)
    client.set_model_version_tag(NAME, made.version, audit.ENTRY_TAG, entry.hash)


def test_an_entry_of_another_record_is_none_of_ours(client) -> None:
    """A reviewer's own words about another model do not count here."""
    write(client, 1)
    record = audit.read(client, "other", Path())
    about = {"candidate": "other-candidates@1", "version": 1, "identity": "x"}
    entry = audit.append(client, record, "promote", "grace", "", about, signing.signing_key())
    sql("update params set value = ? where value != ?", entry.text, entry.text)
    assert "is entry 1 of other" in "; ".join(audit.read(client, "shipments", Path()).problems)


def test_keys_are_trusted_by_the_repository(client, monkeypatch, tmp_path) -> None:
    write(client, 1)
    Path("trusted_keys").mkdir()
    own = signing.public_half(signing.own_key())
    shutil.copyfile(own, "trusted_keys/grace.pem")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    assert problems(client) == ""
    Path("trusted_keys/grace.pem").unlink()
    assert "entry 1: signed by the key" in problems(client)
