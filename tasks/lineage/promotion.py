"""From candidate to champion and back, and the champion as everything that serves it must load it.

What is the champion is decided by the audit record alone; the aliases `champion` and `previous`, and
the tags of the version, only show it.  A promotion copies the version, writes the entry, then sets
tags and aliases to what the newest entry says, and last the tag that names that entry.  Killed
before the entry, it leaves a version that no alias names, which the next attempt uses; killed after
it, the old champion and the new one are both accepted until the next attempt has set the rest.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import audit, evidence, hashes, opinions, review, signing, store, verify
from tasks.lineage.audit import Entry, Record
from tasks.lineage.registry import RegistryError
from tasks.lineage.review import Case, Refused
from tasks.lineage.stage import GateError
from tasks.lineage.statement import Statement
from tasks.params import Promote

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases of the registered model."""

_FROM_TAG = "promoted.from"
_OURS = ("promoted.", "audit.")
"""How tags begin that only a promotion sets."""


@dataclass(frozen=True)
class Promotion:
    """What is the champion now."""

    model: str
    version: int
    candidate: str
    previous: int | None
    made: bool
    """False when it was the champion already."""

    @property
    def line(self) -> str:
        what = "is now" if self.made else "was already"
        before = f"; {PREVIOUS} is version {self.previous}" if self.previous else ""
        return (
            f"{self.candidate} {what} the champion: version {self.version} of {self.model}{before}"
        )


def examine(
    reference: str, reviewer: str | None, settings: Promote, root: Path = Path()
) -> tuple[Case, list[str]]:
    """The evidence for a candidate, and why it must not become the champion, if it must not.

    Args:
        reviewer: None while it is not known who it will be; the others as in `promote`.

    Raises:
        As `promote`.
    """
    with _registry(reference) as client:
        case = review.gather(client, reference, root, settings)
        record = audit.read(client, case.champion_model, root)
        if _is_champion(client, case, record):
            return case, []
        return case, review.objections(case, record, reviewer, settings, root)


def promote(
    reference: str, reviewer: str, comment: str, settings: Promote, root: Path = Path()
) -> Promotion:
    """Make a candidate the champion, once everything that speaks for it was verified again.

    Args:
        reference: NAME-candidates@VERSION, or an alias in place of the version.
        reviewer: who has looked at the evidence; must not be its author.
        comment: for the audit record.
        settings: what is asked of a candidate.
        root: the repository, which says whose signatures are trusted.

    Raises:
        store.Unreachable: when MLflow does not answer.
        Refused: with everything that stands against it.
        RegistryError: when MLflow refuses, as it does who is no reviewer.
        evidence.NotFound: when there is no such version.
    """
    with _registry(reference) as client:
        case = review.gather(client, reference, root, settings)
        while True:
            record = audit.read(client, case.champion_model, root)
            if _is_champion(client, case, record):
                _mirror(client, case, _copies(client, case))
                return _settled(client, record, root, made=False)
            objections = review.objections(case, record, reviewer, settings, root)
            if objections:
                raise Refused(f"{case.reference} is not promoted", objections)
            version = _copied(client, case)
            about = {**_about(case), "version": version, "evidence": case.evidence()}
            try:
                _append(client, record, "promote", reviewer, comment, about)
            except audit.Behind:  # the evidence can be older than that change
                continue
            return _settled(client, audit.read(client, record.model, root), root, made=True)


def refuse(reference: str, reviewer: str, comment: str, root: Path = Path()) -> None:
    """Write into the audit record that a reviewer does not want a candidate.

    Raises:
        As `promote`.
    """
    with _registry(reference) as client:
        case = review.gather(client, reference, root)
        while True:
            record = _whole(audit.read(client, case.champion_model, root), case.reference)
            about = {**_about(case), "version": None, "evidence": None}
            try:
                _append(client, record, "refuse", reviewer, comment, about)
            except audit.Behind:
                continue
            settle(client, audit.read(client, record.model, root), root)
            return


def rollback(
    model: str, to: int | None, reviewer: str, comment: str, root: Path = Path()
) -> Promotion:
    """Make an earlier champion the champion again.

    Args:
        to: a version that was champion before; None for the one that is `previous`.

    Raises:
        As `promote`.
    """
    with _registry(model) as client:
        what = f"{model} is not rolled back"
        while True:
            record = _whole(audit.read(client, model, root), model)
            version = _earlier(client, record, to, what)
            entry = record.of(version)
            assert entry is not None
            if entry == record.champion:
                return _settled(client, record, root, made=False)
            reasons = [reason.why for reason in _reasons(client, record, version, entry, root)]
            if not comment.strip():
                reasons.append("it has no comment; say why with --comment")
            if reasons:
                raise Refused(what, reasons)
            about = {
                key: entry.document[key] for key in ("candidate", "identity", "version", "evidence")
            }
            try:
                _append(client, record, "rollback", reviewer, comment, about)
            except audit.Behind:
                continue
            return _settled(client, audit.read(client, model, root), root, made=True)


@contextmanager
def proven(model: str, root: Path = Path()) -> Iterator[tuple[int, Path]]:
    """The version that is the champion of a registered model, and a folder with a copy of what it
    serves, once its evidence was checked again.

    Raises:
        As `load_champion`.
    """
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        with _registry(model) as client:
            record = audit.read(client, model, root)
            version = _alias(client, model, CHAMPION)
            reasons = _misplaced(record, version)
            if not reasons and version is not None:
                entry = record.accepted[version]
                reasons = _unproven(client, record, version, entry, root, Path(folder))
        if reasons or version is None:
            told = "; ".join([*(reason.why for reason in reasons), reasons[0].remedy])
            raise GateError(f"the champion of {model} is not loaded: {told}")
        yield version, Path(folder)


def load_champion(model: str, root: Path = Path()) -> Any:
    """Load the champion of a registered model, as everything must that serves it.

    What is checked is a copy, and that copy is what is loaded.

    Returns:
        An MLflow pyfunc model.

    Raises:
        store.Unreachable: when MLflow does not answer.
        GateError: when the alias is not where the audit record put it, or the evidence does not
            hold any more.
    """
    with proven(model, root) as (_, folder):
        import mlflow

        return mlflow.pyfunc.load_model(str(folder / evidence.MODEL))


@dataclass(frozen=True)
class Problem:
    """Why something is not as the audit record has it."""

    what: str
    """NAME, or NAME@ALIAS."""
    why: str
    remedy: str


def problems(client: MlflowClient, root: Path = Path()) -> list[Problem]:
    """Every registered model whose champion would not be loaded, and why; and promotions that were
    interrupted."""
    models = {found.name: found for found in store.every(client.search_registered_models)}
    told: list[Problem] = []
    for name, found in models.items():
        if not (audit.RUN_TAG in found.tags or f"{name}{review.CANDIDATES}" in models):
            continue  # of a team that does not work with Tunetrail
        record = audit.read(client, name, root)
        version = _alias(client, name, CHAMPION)
        if version is None and record.champion is None:
            told += _tampered(record, name)
            continue
        reasons = _misplaced(record, version)
        if not reasons and version is not None:
            reasons = _reasons(client, record, version, record.accepted[version], root)
        told += reasons
        if reasons or record.champion is None:
            continue
        again = f"`tunetrail promote {record.champion.candidate}`"
        if record.unfinished:
            entry = record.unfinished[-1]
            why = (
                f"entry {entry.number} of the audit record ({entry.action} {entry.candidate}) was "
                "written and not carried out"
            )
            told.append(Problem(name, why, f"{again} finishes it"))
        elif _alias(client, name, PREVIOUS) != _previous(client, record):
            told.append(
                Problem(f"{name}@{PREVIOUS}", "it was moved by hand", f"{again} puts it back")
            )
    return told


def settle(client: MlflowClient, record: Record, root: Path) -> Record:
    """Set tags and aliases to what the record says, until no entry came in between."""
    while True:
        _show(client, record)
        newest = audit.read(client, record.model, root)
        if [entry.hash for entry in newest.entries] == [entry.hash for entry in record.entries]:
            return newest
        record = newest


def _show(client: MlflowClient, record: Record) -> None:
    model, standing = record.model, record.champions
    if standing:
        entry = standing[-1]
        said = entry.document
        for tag, value in {
            _FROM_TAG: entry.candidate,
            "promoted.by": said["reviewer"],
            "promoted.comment": said["comment"],
            "promoted.at": said["time"],
            "promoted.evidence": said["evidence"]["sha256"],
            audit.ENTRY_TAG: entry.hash,
        }.items():
            client.set_model_version_tag(model, str(entry.version), tag, value)
        _point(client, model, PREVIOUS, _previous(client, record))
        _point(client, model, CHAMPION, entry.version)
    client.set_registered_model_tag(model, audit.HEAD_TAG, record.entries[-1].hash)


def _previous(client: MlflowClient, record: Record) -> int | None:
    """The version that a rollback leads to, unless it was deleted."""
    there = {int(found.version) for found in audit.versions(client, record.model)}
    below = [entry.version for entry in record.champions[:-1] if entry.version in there]
    return below[-1] if below else None


def _point(client: MlflowClient, model: str, alias: str, version: int | None) -> None:
    if version is None:
        client.delete_registered_model_alias(model, alias)
    else:
        client.set_registered_model_alias(model, alias, str(version))


def _settled(client: MlflowClient, record: Record, root: Path, made: bool) -> Promotion:
    record = settle(client, _whole(record, record.model), root)
    standing = record.champions
    version = standing[-1].version
    assert version is not None
    candidate = standing[-1].candidate
    return Promotion(record.model, version, candidate, _previous(client, record), made)


def _append(
    client: MlflowClient,
    record: Record,
    action: audit.Action,
    reviewer: str,
    comment: str,
    about: Mapping[str, Any],
) -> Entry:
    return audit.append(client, record, action, reviewer, comment, about, signing.signing_key())


def _about(case: Case) -> dict[str, Any]:
    return {"candidate": case.reference, "identity": case.version.tags.get("identity")}


def _is_champion(client: MlflowClient, case: Case, record: Record) -> bool:
    """Whether the record says so, and still may; the aliases can have been left behind."""
    champion = record.champion
    return (
        case.report.holds
        and not record.problems
        and champion is not None
        and champion.candidate == case.reference
        and champion.document["identity"] == case.version.tags.get("identity")
        and champion.version in [int(it.version) for it in audit.versions(client, record.model)]
    )


def _copied(client: MlflowClient, case: Case) -> int:
    """The candidate as a version of the model that is served: found, or made in one request."""
    name, candidate = case.champion_model, case.version
    audit.begin(client, name)
    if copies := _copies(client, case):
        _mirror(client, case, copies)
        return copies[0]
    made = client.create_model_version(
        name,
        _source(case),
        run_id=candidate.run_id,
        tags={**_told(candidate), _FROM_TAG: case.reference},
        description=candidate.description,
        model_id=candidate.model_id,
    )
    return int(made.version)


def _copies(client: MlflowClient, case: Case) -> list[int]:
    """The versions that the candidate was copied to: by a promotion, or by MLflow's own button."""
    wanted = (_source(case), case.version.run_id, "READY")
    return sorted(
        int(found.version)
        for found in audit.versions(client, case.champion_model)
        if (found.source, found.run_id, found.status) == wanted
    )


def _mirror(client: MlflowClient, case: Case, copies: list[int]) -> None:
    """Let copies say what the candidate says: somebody can have edited them."""
    name, candidate = case.champion_model, case.version
    wanted = _told(candidate)
    for version in map(str, copies):
        copy = client.get_model_version(name, version)
        for tag in _told(copy).keys() - wanted.keys():
            client.delete_model_version_tag(name, version, tag)
        for tag, value in wanted.items() - copy.tags.items():
            client.set_model_version_tag(name, version, tag, value)
        if (copy.description or "") != (candidate.description or ""):
            client.update_model_version(name, version, candidate.description or "")


def _source(case: Case) -> str:
    return f"models:/{case.version.name}/{case.version.version}"


def _told(version: Any) -> dict[str, str]:
    """What a version says of its evidence."""
    return {tag: value for tag, value in version.tags.items() if not tag.startswith(_OURS)}


def _earlier(client: MlflowClient, record: Record, to: int | None, what: str) -> int:
    """The version to go back to."""
    if to is None:
        version = _previous(client, record)
        if version is None:
            raise Refused(what, ["there is no champion before this one; name one with --to"])
        return version
    if record.of(to) is None:
        were = sorted({entry.version for entry in record.entries if entry.version is not None})
        known = ", ".join(map(str, were)) or "none"
        raise Refused(
            what, [f"version {to} was never champion; these were: {known}; --to takes one of them"]
        )
    return to


def _whole(record: Record, what: str) -> Record:
    if record.problems:
        raise Refused(
            f"nothing is done about {what}, since its audit record does not hold",
            [
                f"{problem}; `tunetrail audit {record.model}` shows it"
                for problem in record.problems
            ],
        )
    return record


def _tampered(record: Record, what: str) -> list[Problem]:
    remedy = "find out who did that, and restore MLflow's database from a backup"
    return [
        Problem(what, f"the audit record does not hold: {problem}", remedy)
        for problem in record.problems
    ]


def _misplaced(record: Record, version: int | None) -> list[Problem]:
    """Why the alias of the champion cannot be believed, given the version that it names."""
    what = f"{record.model}@{CHAMPION}"
    if record.problems:
        return _tampered(record, what)
    promote = f"`tunetrail promote {record.model}{review.CANDIDATES}@VERSION`"
    champion = record.champion
    if champion is None and version is None:
        return [Problem(what, "it has none", f"{promote} makes one")]
    if version in record.accepted:
        return []
    moved = f"the alias was moved by hand to version {version}"
    why = "the alias is missing" if version is None else moved
    if champion is None:
        why += ", and the audit record has promoted none"
        return [Problem(what, why, f"{promote} promotes a candidate")]
    why += f", and the audit record has promoted version {champion.version}"
    return [Problem(what, why, f"`tunetrail promote {champion.candidate}` puts it back")]


def _reasons(
    client: MlflowClient, record: Record, version: int, entry: Entry, root: Path
) -> list[Problem]:
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        return _unproven(client, record, version, entry, root, Path(folder))


def _unproven(
    client: MlflowClient, record: Record, version: int, entry: Entry, root: Path, folder: Path
) -> list[Problem]:
    """Why a version is not what an entry of the record has promoted; the model is copied into
    `folder`, and the copy is what is checked."""
    back = f"`tunetrail rollback {record.model} --comment WHY`"
    remedy = f"{back} goes back, or promote a candidate that holds"
    return [
        Problem(f"{record.model}@{CHAMPION}", why, remedy)
        for why in _doubts(client, record, version, entry, root, folder)
    ]


def _doubts(
    client: MlflowClient, record: Record, version: int, entry: Entry, root: Path, folder: Path
) -> list[str]:
    found = evidence.find(client, record.model, str(version))
    with review.read(client, found) as stored:
        copied = _copy_model(stored, folder)
        report = verify.check(client, copied, root)
        doubts = [f"verify {finding.check}: {finding.why}" for finding in report.failed]
        if doubts:
            return doubts
        statement = Statement.read(copied.files[evidence.STATEMENT])
        verdict = copied.read_json(evidence.VERDICT)["verdict"]
    promoted = entry.document
    kept = promoted["evidence"]
    if promoted["identity"] != statement.identity:
        return [
            f"version {version} has the identity {statement.identity}, and the audit record has "
            f"promoted {promoted['identity']}"
        ]
    # what a promotion refuses: an entry need not have been written by one
    if verdict != "pass":
        doubts.append(f"its verdict is {verdict}")
    if review.is_same_person(promoted["reviewer"], statement.author):
        doubts.append(f"{promoted['reviewer']} promoted it, and is its author")
    now = review.digest(
        hashes.sha256_json(statement.document),
        kept["reproduction"],
        kept["checks"],
        kept.get("gates", []),
        kept.get("opinions", []),
    )
    if now != kept or set(kept["checks"]) - {finding.check for finding in report.findings}:
        doubts.append("its statement or the checks are not those on which it was promoted")
    answers = review.reproductions(client, found)
    if kept["reproduction"] not in map(hashes.sha256_json, answers):
        doubts.append(
            f"the answer of reproduce on which it was promoted is not in "
            f"{evidence.REPRODUCTIONS}/ any more"
        )
    if kept.get("opinions"):
        said = opinions.read(client, found, root)
        there = set(map(hashes.sha256_json, [*said.votes, *said.judgements]))
        if lost := len(set(kept["opinions"]) - there):
            doubts.append(
                f"{lost} of the {len(kept['opinions'])} opinions on which it was promoted are not in "
                f"{evidence.OPINIONS}/ any more"
            )
    return doubts


def _copy_model(stored: evidence.Evidence, folder: Path) -> evidence.Evidence:
    """The version with its model in a folder of our own, where nobody changes it after the check,
    and where Python's bytecode does no harm."""
    files = dict(stored.files)
    for name, path in stored.files.items():
        if name.startswith(f"{evidence.MODEL}/") and stat.S_ISREG(path.lstat().st_mode):
            files[name] = folder / name
            files[name].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, files[name])
    return replace(stored, files=files)


def _alias(client: MlflowClient, model: str, alias: str) -> int | None:
    """The version that an alias names; None without the alias or the model."""
    from mlflow import MlflowException

    try:
        found = client.get_registered_model(model).aliases.get(alias)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return None if found is None else int(found)


@contextmanager
def _registry(what: str) -> Iterator[MlflowClient]:
    """A client, whose refusals are told with what to do."""
    client = store.connect()
    from mlflow import MlflowException

    try:
        yield client
    except MlflowException as error:
        denied = error.error_code == "PERMISSION_DENIED" or "code 403" in str(error)
        remedy = "see that the name is right; only reviewers may promote and roll back"
        raise RegistryError(
            f"MLflow refuses what {what} needs: {store.brief(error)}; "
            f"{remedy if denied else 'see that MLflow is well, then do it again'}"
        ) from error
