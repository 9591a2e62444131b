"""The audit record of a registered model: who made what its champion, when, and on what evidence.

It lies with the registry, so that a team shares it: each entry is a parameter of one MLflow run in
the experiment `<name>-audit`.  MLflow takes a parameter once and never changes it, so of two
reviewers who write the same entry at once one gets it, and the other writes the next: a chain, no
fork.  Each entry holds the sha256 of the one before and is sealed with the reviewer's key, so that
none can be edited, removed, moved or inserted unseen.  The hash of the newest is also a tag of the
registered model and of the version that it speaks of, which shows entries that were cut off; and each
work tree remembers the newest that it has read, should these tags have been set back too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.lineage import courier, seal, signing, store, whole
from tasks.lineage.stage import STATE, StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Action = Literal["promote", "rollback", "refuse"]

PURPOSE = "audit entry"
RUN_TAG = "audit.run"
"""Of the registered model: the run that holds the record."""
HEAD_TAG = "audit.head"
"""Of the registered model: the hash of the newest entry that was carried out."""
ENTRY_TAG = "audit.entry"
"""Of a version: the hash of the entry that made it champion last."""

SEEN = STATE / "audit"
"""Of a work tree: the hash of the newest entry that it has seen, by the run that holds the record."""

_KEY = "entry."
_FIRST = "0" * 64
"""What the first entry names as the one before."""
_LONGEST = 6000
"""Characters of a parameter; MLflow cuts off what is longer."""


class Behind(Exception):
    """Another reviewer has written an entry meanwhile: read the record again."""


@dataclass(frozen=True)
class Entry:
    """One decision."""

    text: str
    """As it is kept."""

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def document(self) -> dict[str, Any]:
        """number, before, model, action, candidate, version, from, identity, evidence {sha256,
        statement, reproduction, checks}, reviewer, comment, time, key, seal."""
        content: dict[str, Any] = json.loads(self.text)
        return content

    @property
    def number(self) -> int:
        return int(self.document["number"])

    @property
    def action(self) -> str:
        return str(self.document["action"])

    @property
    def candidate(self) -> str:
        """NAME-candidates@VERSION."""
        return str(self.document["candidate"])

    @property
    def version(self) -> int | None:
        """What it made the champion; None for a refusal."""
        version = self.document["version"]
        return None if version is None else int(version)

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.document["time"])

    @property
    def line(self) -> str:
        """For a console."""
        said = self.document
        what = {
            "promote": f"{said['candidate']} became version {said['version']}",
            "rollback": f"back to version {said['version']} ({said['candidate']})",
            "refuse": f"refused {said['candidate']}",
        }[self.action]
        before = f", from version {said['from']}" if said["from"] is not None else ""
        comment = f": {said['comment']}" if said["comment"] else ""
        return f"{self.number:>4}  {said['time']}  {said['reviewer']}  {what}{before}{comment}"


@dataclass(frozen=True)
class Record:
    """The audit record as it was read."""

    model: str
    run_id: str | None
    """None before the first entry."""
    entries: Sequence[Entry]
    """As far as they can be read."""
    head: str | None
    """The tag of that name."""
    problems: Sequence[str]
    """Why the chain does not hold, a line each; none when it does."""

    @property
    def unfinished(self) -> list[Entry]:
        """The entries that were written, and whose aliases and tags perhaps were not."""
        hashes = [entry.hash for entry in self.entries]
        carried_out = hashes.index(self.head) + 1 if self.head in hashes else 0
        return list(self.entries[carried_out:])

    @property
    def champions(self) -> list[Entry]:
        """The entry of the champion, last, behind those that it can be rolled back to."""
        return champions(self.entries)

    @property
    def champion(self) -> Entry | None:
        return self.champions[-1] if self.champions else None

    @property
    def changed(self) -> datetime | None:
        """When the champion changed last; None while there was none."""
        changes = [entry.time for entry in self.entries if entry.version is not None]
        return changes[-1] if changes else None

    @property
    def accepted(self) -> dict[int, Entry]:
        """What may be served, by version, with the entry that says so: the champion, and until a
        promotion is carried out the one before as well."""
        carried_out = len(self.entries) - len(self.unfinished)
        standing = [
            champions(self.entries[:count])[-1:]
            for count in range(carried_out, len(self.entries) + 1)
        ]
        return {entry.version: entry for found in standing for entry in found if entry.version}

    def of(self, version: int) -> Entry | None:
        """The entry that made a version champion last."""
        made = [entry for entry in self.entries if entry.version == version]
        return made[-1] if made else None


def champions(entries: Sequence[Entry]) -> list[Entry]:
    """A promotion goes on top; a rollback takes away what lies above its version."""
    standing: list[Entry] = []
    for entry in entries:
        if entry.version is None:
            continue
        below = [old.version for old in standing]
        if entry.action == "rollback" and entry.version in below:
            del standing[below.index(entry.version) :]
        standing.append(entry)
    return standing


def experiment_name(model: str) -> str:
    return f"{model}-audit"


def read(client: MlflowClient, model: str, root: Path) -> Record:
    """Read and check the record of a registered model; empty when it has none.

    Args:
        root: the repository, which says whose signatures are trusted.

    Raises:
        signing.KeyProblem: when a trusted key cannot be read.
    """
    tags = _tags(client, model)
    run_id, head = tags.get(RUN_TAG), tags.get(HEAD_TAG)
    texts = _texts(client, run_id) if run_id else {}
    entries, problems = _chained(model, texts, signing.trusted_keys(root))
    hashes = {entry.hash for entry in entries}
    if head is not None and head not in hashes:
        problems.append(
            f"the newest entry was {head[:12]}, says tag {HEAD_TAG} of {model}, and the record does "
            "not hold it: entries were cut off or edited"
        )
    for version in versions(client, model) if tags else []:
        named = version.tags.get(ENTRY_TAG)
        if named is not None and named not in hashes:
            problems.append(
                f"version {version.version} names the entry {named[:12]}, which the record does not "
                "hold: entries were cut off or edited"
            )
    problems += _other_records(client, model, run_id)
    if run_id is not None and not problems:
        problems += _less_than_seen(root / SEEN / run_id, entries)
    return Record(model, run_id, entries, head, problems)


def begin(client: MlflowClient, model: str) -> str:
    """The run that holds the record; the run and the registered model are made if need be.

    MLflow makes a registered model once, so one of several processes that begin at once names its
    run there, and all others use that one.
    """
    from mlflow import MlflowException

    if named := _tags(client, model).get(RUN_TAG):
        return named
    experiment = courier.experiment(client, experiment_name(model))
    run_id = str(client.create_run(experiment, run_name=f"audit record of {model}").info.run_id)
    client.set_terminated(run_id)
    try:
        client.create_registered_model(
            model,
            tags={RUN_TAG: run_id},
            description="What is served. `tunetrail promote` puts a candidate here once its evidence "
            "holds; an alias that is moved by hand is refused when the model is loaded.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if RUN_TAG not in _tags(client, model):  # it was made by hand
            client.set_registered_model_tag(model, RUN_TAG, run_id)
    chosen = _tags(client, model)[RUN_TAG]
    if chosen != run_id:
        client.delete_run(run_id)
    return chosen


def append(
    client: MlflowClient,
    record: Record,
    action: Action,
    reviewer: str,
    comment: str,
    about: Mapping[str, Any],
    private: Path,
) -> Entry:
    """Write the next entry.

    Args:
        about: candidate, version, identity, evidence.
        private: the reviewer's key.

    Raises:
        Behind: when another was written since the record was read.
        StageError: when the entry is too long.
    """
    from mlflow import MlflowException

    standing = record.champion
    number = len(record.entries) + 1
    document = {
        "number": number,
        "before": record.entries[-1].hash if record.entries else _FIRST,
        "model": record.model,
        "action": action,
        "from": standing.version if standing else None,
        "reviewer": reviewer,
        "comment": comment,
        "time": now(),
        **about,
    }
    text = json.dumps(seal.sealed(PURPOSE, document, private), sort_keys=True)
    if len(text) > _LONGEST:
        raise StageError(
            f"the comment has {len(comment)} characters, and the entry of the audit record would "
            f"have {len(text)}, more than the {_LONGEST} that MLflow keeps; shorten the comment"
        )
    run_id = begin(client, record.model)
    try:
        client.log_param(run_id, _name(number), text)
    except MlflowException:
        if _texts(client, run_id).get(_name(number)) != text:
            if _name(number) in _texts(client, run_id):
                raise Behind from None
            raise
    return Entry(text)


def versions(client: MlflowClient, model: str) -> list[Any]:
    """Every version of a registered model."""
    return list(store.every(client.search_model_versions, filter_string=f"name = '{model}'"))


def now() -> str:
    """The time, in RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _name(number: int) -> str:
    return f"{_KEY}{number:06d}"


def _tags(client: MlflowClient, model: str) -> dict[str, str]:
    from mlflow import MlflowException

    try:
        return dict(client.get_registered_model(model).tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def _texts(client: MlflowClient, run_id: str) -> dict[str, str]:
    """The entries by the name of their parameter; none when the run is gone."""
    from mlflow import MlflowException

    try:
        params = client.get_run(run_id).data.params
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise  # who cannot reach the record must not be told that it was cut off
    return {name: text for name, text in params.items() if name.startswith(_KEY)}


def _chained(
    model: str, texts: Mapping[str, str], trusted: Mapping[str, Path]
) -> tuple[list[Entry], list[str]]:
    """The entries up to the first that does not follow, and what is wrong."""
    entries: list[Entry] = []
    before = _FIRST
    for number, name in enumerate(sorted(texts), 1):
        entry = Entry(texts[name])
        if why := _wrong(model, entry, name, number, before, trusted):
            return entries, [f"entry {number}: {why}"]
        entries.append(entry)
        before = entry.hash
    return entries, []


def _wrong(
    model: str, entry: Entry, name: str, number: int, before: str, trusted: Mapping[str, Path]
) -> str | None:
    try:
        said = entry.document
        if name != _name(number):
            return f"missing; {name} follows instead: entries were removed or renamed"
        seal.check(PURPOSE, said, trusted)
        if (said["number"], said["model"]) != (number, model):
            return f"is entry {said['number']} of {said['model']}: entries were moved"
        if said["before"] != before:
            return "does not follow the entry before it: entries were edited, removed or inserted"
        entry.line, entry.version, entry.time  # noqa: B018 - whether it holds what it must
    except signing.BadSignature as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "cannot be read: it was edited"
    return None


def _less_than_seen(seen: Path, entries: Sequence[Entry]) -> list[str]:
    """Who owns the database can cut off entries and set back every tag that tells of them; whoever
    has read the record before finds out."""
    known = seen.read_text(encoding="utf-8") if seen.exists() else None
    if known is not None and known not in [entry.hash for entry in entries]:
        return [
            f"the entry {known[:12]}, which was read here before, is not in it any more: entries were "
            f"cut off, or the database was set back ({seen} remembers it)"
        ]
    if entries and known != entries[-1].hash:
        with contextlib.suppress(OSError):  # a place to serve from need not be writable
            whole.write_text(seen, entries[-1].hash)
    return []


def _other_records(client: MlflowClient, model: str, run_id: str | None) -> list[str]:
    """The registered model was made to name another record than that of its experiment."""
    experiment = client.get_experiment_by_name(experiment_name(model))
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if run_id and run_id not in [run.info.run_id for run in runs]:
        return [
            f"tag {RUN_TAG} of {model} names run {run_id}, which is not in the experiment "
            f"{experiment_name(model)}: it was deleted, or the tag was set by hand"
        ]
    return [
        f"run {run.info.run_id} of {experiment_name(model)} holds another record; tag {RUN_TAG} of "
        f"{model} names {run_id}"
        for run in runs
        if run.info.run_id != run_id and any(name.startswith(_KEY) for name in run.data.params)
    ]
