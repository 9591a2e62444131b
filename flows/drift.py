"""The drift check: is what arrived unlike what the champion learned from?

As a function for the command line, and as a Prefect flow that a schedule starts.  Champion and data are
those of its provenance, found by hash; what lies in data/ and models/ does not matter.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import flow
from prefect.client.schemas import State
from prefect.states import Completed
from ruamel.yaml import YAML

from flows import dvc_storage, events, reproduce
from flows.drift_checks import DOCUMENT, REPORT
from flows.drift_checks import FOLDER as CHECKS
from flows.reproduce import Recorded
from tasks.drift import arrivals, comparison, learned, quality, report
from tasks.drift.arrivals import Arrival, Reading
from tasks.drift.columns import Side
from tasks.drift.comparison import Comparison
from tasks.drift.learned import Learned
from tasks.drift.quality import Quality, Registered
from tasks.lineage import champion, courier, hashes, process, promotion, store, whole
from tasks.lineage.console import log
from tasks.lineage.stage import DONE, FAULT, GATE, MISUSE, STATE, GateError, StageError
from tasks.params import Params, load

if TYPE_CHECKING:
    from mlflow import MlflowClient

INCOMING = Path("data/incoming")
LEARNED = STATE / "learned"
"""Outputs of the stages that made champions, by their md5."""
SCHEMA = 1

Decision = Literal["drift", "none", "too_few", "nothing"]


class NoChampion(StageError):
    """There is nothing to compare with."""

    exit_code = MISUSE


class NoData(StageError):
    """What the champion learned from is in no cache and no remote."""

    exit_code = FAULT


@dataclass(frozen=True)
class Check:
    """What came of a check."""

    decision: Decision
    message: str
    """A line that says so."""
    left_out: list[Arrival] = field(default_factory=list)
    document: Mapping[str, Any] | None = None
    """What drift.json holds; None where nothing was new."""
    known: bool = False
    """Whether an earlier check has compared the same files with the same champion."""
    run: str | None = None
    """The page of its MLflow run, where MLflow has one."""

    @property
    def name(self) -> str | None:
        return str(self.document["check"]) if self.document else None

    @property
    def folder(self) -> Path | None:
        return CHECKS / self.name if self.name else None

    @property
    def exit_code(self) -> int:
        if self.decision == "drift":
            return GATE
        at_fault = [one for one in self.left_out if not one.later]
        return MISUSE if at_fault and self.document is None else DONE

    def lines(self) -> list[str]:
        """For a console."""
        told = [self.message]
        told += [f"  {reason}" for reason in (self.document or {}).get("reasons", [])]
        told += [f"  left out: {one.name} {one.why_not}" for one in self.left_out]
        return told


def check(params: Params, against: str | None = None) -> Check:
    """Look at what arrived, and compare it with what the champion learned from.

    Nothing is done where nothing is new: the same files were compared with the same champion before,
    or the champion learned from them.

    Args:
        against: NAME@VERSION to compare with; the champion otherwise.

    Raises:
        store.Unreachable: when MLflow, which knows the champion, does not answer.
        StageError: when there is no champion, or its data is not to be had.
    """
    try:
        with process.only_writer("drift", STATE / "locks", wait_seconds=1.0):
            return _check(params, against)
    except process.Busy as error:
        return Check("nothing", f"nothing was looked at, since another check does: {error}")


def _check(params: Params, against: str | None) -> Check:
    _refuse_unlike(params)
    _clear()
    client = store.connect()
    recorded = _recorded(client, params, against)
    where = dvc_storage.storage()
    found = arrivals.find(INCOMING, params.drift, _known(recorded, where))
    new = [one for one in found if one.why_not is None]
    left_out = [one for one in found if one.why_not is not None]
    if not new:
        what = "no new file" if not left_out else "no new file that can be used"
        return Check(
            "nothing", f"{what} in {INCOMING}, of those that drift.incoming names", left_out
        )
    asked = _asked(recorded, params, new)
    if (earlier := _earlier(asked)) is not None:
        return _again(earlier, left_out)
    CHECKS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".reading-", dir=CHECKS) as folder:
        reading = arrivals.read(new, params, Path(folder))
    left_out += reading.left_out
    if not reading.files:
        return Check("nothing", f"no new file in {INCOMING} can be read", left_out)
    return _compared(client, recorded, params, reading, left_out, asked, where)


def _clear() -> None:
    """Remove what a check that was killed left: rows as they came, or a check that is not in place.
    Nobody else is at it while we hold the lock."""
    for pattern in (".reading-*", ".*.partial"):
        for left in CHECKS.glob(pattern):
            whole.remove(left)


def _refuse_unlike(params: Params) -> None:
    """Every entry must be like a source that is trained on, whose entry says how it is read.

    Raises:
        StageError: when one is not.
    """
    roles = {source.file: source.role for source in params.ingest.sources}
    trained = ", ".join(file for file, role in roles.items() if role == "train")
    for index, entry in enumerate(params.drift.incoming):
        if roles.get(entry.like) != "train":
            raise StageError(
                f"params.yaml: drift.incoming[{index}].like is {entry.like!r}, no source of "
                f"ingest.sources with role train; these are: {trained}"
            )


def _recorded(client: MlflowClient, params: Params, against: str | None) -> Recorded:
    """The version to compare with; of the champion, the evidence is checked again."""
    if against is not None:
        return reproduce.read(client, against)
    name = params.register_.name
    try:
        with promotion.proven(name) as (version, _):
            return reproduce.read(client, f"{name}@{version}")
    except GateError as error:
        raise NoChampion(
            f"{error}; or compare with a candidate: `tunetrail drift --against "
            f"{name}-candidates@VERSION`"
        ) from error


def _asked(recorded: Recorded, params: Params, new: Sequence[Arrival]) -> str:
    """What a check is about: files, champion and settings, as one hash."""
    sections = [params.drift, params.ingest, params.validate_, params.compute]
    return hashes.sha256_json(
        {
            "files": sorted({f"{one.sha256} {one.like}" for one in new}),
            "champion": recorded.identity,
            "settings": [section.model_dump(mode="json") for section in sections],
        }
    )


def _earlier(asked: str) -> dict[str, Any] | None:
    for path in sorted(CHECKS.glob(f"*/{DOCUMENT}"), reverse=True):
        with contextlib.suppress(ValueError, OSError):
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if document.get("asked") == asked:
                return document
    return None


def _again(earlier: Mapping[str, Any], left_out: list[Arrival]) -> Check:
    decision: Decision = "drift" if earlier["fired"] else "nothing"
    said = f"nothing is new since check {earlier['check']}: {earlier['message']}"
    return Check(decision, said, left_out, earlier, known=True, run=earlier["run"])


# --- what the champion learned from ---------------------------------------------------------------


def _known(recorded: Recorded, where: dvc_storage.Storage) -> set[str]:
    """Digests of the files that were ingested: from DVC's list of the folder, from what lies here if it
    is that, and from the commit."""
    known: set[str] = set()
    for path, md5 in recorded.stages["ingest"]["inputs"].items():
        if path not in recorded.sources or not path.startswith("data/"):
            continue
        here = Path(path)
        if listed := dvc_storage.listing(md5, where) if md5.endswith(".dir") else None:
            known.update(listed)
        elif here.exists() and hashes.dvc_md5(here) == md5:
            known.update(hashes.file_hash(file, "md5") for file in hashes.files_below(here))
        else:
            known.update(_committed(recorded.statement.commit, path))
    return known


def _committed(commit: str | None, path: str) -> Iterator[str]:
    """git's hash of the files at a commit, and the md5 that a .dvc file there names."""
    if commit is None:
        return
    told = subprocess.run(
        ["git", "ls-tree", "-r", "-z", commit, "--", path],
        capture_output=True,
        text=True,
        check=False,
    )
    for entry in filter(None, told.stdout.split("\0")):
        about, _, name = entry.partition("\t")
        blob = about.split()[-1]
        yield blob
        if name.endswith(".dvc"):
            pointer = subprocess.run(
                ["git", "cat-file", "blob", blob], capture_output=True, text=True, check=True
            )
            outs = (YAML(typ="safe").load(pointer.stdout) or {}).get("outs", [])
            yield from (out["md5"] for out in outs if "md5" in out)


def _learned(recorded: Recorded, where: dvc_storage.Storage) -> Learned:
    """Bring what the stages that made a version wrote, by hash.

    Raises:
        NoData: when it is nowhere to be had.
    """
    wanted = (
        "data/formatted",
        "data/corpus.jsonl",
        "data/validated",
        "data/rejected/ingest.jsonl",
        "data/rejected/validate.jsonl",
    )
    formatted, corpus, validated, *rejected = _bring(recorded, wanted, where)
    ingest = recorded.stages["ingest"]["params"]["ingest"]
    return Learned(
        formatted, corpus, validated, (rejected[0], rejected[1]), tuple(ingest["sources"])
    )


def _bring(recorded: Recorded, paths: Sequence[str], where: dvc_storage.Storage) -> list[Path]:
    outputs = {
        path: output["md5"]
        for record in recorded.stages.values()
        for path, output in record["outputs"].items()
    }
    if unknown := [path for path in paths if path not in outputs]:
        raise NoData(
            f"the provenance of {recorded.name} tells of no {', '.join(unknown)}; "
            "compare with a version that this pipeline made"
        )
    places = {
        LEARNED / outputs[path].removesuffix(".dir") / Path(path).name: path for path in paths
    }
    missing = {
        place: outputs[path]
        for place, path in places.items()
        if not place.exists() or hashes.dvc_md5(place) != outputs[path]
    }
    if lost := dvc_storage.fetch(missing, where) if missing else []:
        asked = ", ".join([str(where.cache), *(remote.url for remote in where.remotes)])
        raise NoData(
            f"{', '.join(places[place] for place in lost)}, from which {recorded.name} was made, is not "
            f"in {asked}, undamaged; `dvc push` it from where the version was registered"
        )
    return list(places)


# --- the comparison -------------------------------------------------------------------------------


def _compared(
    client: MlflowClient,
    recorded: Recorded,
    params: Params,
    reading: Reading,
    left_out: list[Arrival],
    asked: str,
    where: dvc_storage.Storage,
) -> Check:
    brought = _learned(recorded, where)
    kinds = {source.file: source.kind for source in params.ingest.sources}
    sides: dict[str, tuple[Side, Side]] = {}
    for like, read in reading.read.items():
        rows, seed = params.drift.sample_rows, params.compute.seed
        before = learned.side(brought, like, kinds[like], rows, seed)
        sides[like] = (before, read.side())
    found = comparison.compare(
        sides, params.drift, params.format.near_duplicates, params.compute.seed
    )
    asked_of = {
        like: after
        for like, (_, after) in sides.items()
        if kinds[like] == "chat"
        and params.drift.quality.rows
        and len(after.records) >= params.drift.min_rows
    }
    measured = [
        one
        for like, after in asked_of.items()
        if (one := _quality(client, recorded, like, after, params, where, len(asked_of)))
        is not None
    ]
    document = _document(recorded, params, reading, left_out, found, measured, asked)
    return _kept(client, params, document, found, measured, left_out)


def _quality(
    client: MlflowClient,
    recorded: Recorded,
    like: str,
    after: Side,
    params: Params,
    where: dvc_storage.Storage,
    sources: int,
) -> Quality | None:
    evaluated = recorded.stages.get("evaluate")
    if evaluated is None:
        return None
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        measured = _read_json(client, recorded, "evaluate.metrics.json", folder)
        (reported,) = _bring(recorded, ["models/report"], where)
        schema = recorded.stages["validate"]["params"]["validate"]["answer_schema"]
        registered = Registered(
            metric=measured["primary"],
            final=measured["final"],
            predictions=reported / quality.PREDICTIONS,
            schema=schema,
            max_new_tokens=evaluated["params"]["evaluate"]["max_new_tokens"],
        )
        return quality.measure(
            like,
            after.records,
            champion.bring(recorded.identity),
            registered,
            params.drift,
            params.compute.threads,
            params.compute.seed,
            sources,
        )


def _read_json(client: MlflowClient, recorded: Recorded, file: str, folder: str) -> dict[str, Any]:
    path = Path(client.download_artifacts(recorded.run_id, file, folder))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _document(
    recorded: Recorded,
    params: Params,
    reading: Reading,
    left_out: Sequence[Arrival],
    found: Sequence[Comparison],
    measured: Sequence[Quality],
    asked: str,
) -> dict[str, Any]:
    now = datetime.now(UTC)
    digest = arrivals.digest([one["sha256"] for one in reading.files])
    reasons = [reason for one in found for reason in one.reasons]
    reasons += [f"{one['like']}: {one['says']}" for one in measured if one["fires"]]
    tested = any(one.tests for one in found)
    decision: Decision = "drift" if reasons else "none" if tested else "too_few"
    rows = sum(one["rows"] for one in reading.files)
    against = recorded.name
    message = {
        "drift": f"drift: {rows:,} rows that arrived are unlike what {against} learned from",
        "none": f"no drift: {rows:,} rows that arrived are like what {against} learned from, as far as "
        "the tests can tell",
        "too_few": f"too few: {rows:,} rows arrived, and drift.min_rows is {params.drift.min_rows} of a "
        "source; they are looked at again with the next ones",
    }[decision]
    return {
        "schema": SCHEMA,
        "check": f"{now:%Y%m%dT%H%M%SZ}-{digest[:8]}",
        "at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "decision": decision,
        "message": message,
        "champion": {
            "model": recorded.model,
            "version": recorded.number,
            "identity": recorded.identity,
        },
        "data": {"id": digest, "files": reading.files},
        "left_out": [{"file": one.name, "why": one.why_not} for one in left_out],
        "fired": decision == "drift",
        "reasons": reasons,
        "statistics": {one.like: one.document() for one in found},
        "quality": {one["like"]: one for one in measured} or None,
        "settings": params.drift.model_dump(mode="json"),
        "asked": asked,
        "run": None,
    }


def _kept(
    client: MlflowClient,
    params: Params,
    document: dict[str, Any],
    found: Sequence[Comparison],
    measured: Sequence[Quality],
    left_out: list[Arrival],
) -> Check:
    """Write the report, tell MLflow, then put the check in place: until then it was not made."""
    place = CHECKS / document["check"]
    partial = whole.partial(place)
    whole.recover(place)
    partial.mkdir(parents=True)
    try:
        (partial / REPORT).write_text(report.render(document), encoding="utf-8")
        document["run"] = _tracked(client, params, document, partial)
        whole.write_json(partial / DOCUMENT, document)
        whole.put(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Check(document["decision"], document["message"], left_out, document, run=document["run"])


def _tracked(
    client: MlflowClient, params: Params, document: Mapping[str, Any], folder: Path
) -> str | None:
    """Log the check as a run of the experiment NAME-drift. Returns its page."""
    from mlflow.entities import Metric, RunTag

    experiment = courier.experiment(client, f"{params.register_.name}-drift")
    tags = {
        "mlflow.runName": document["check"],
        "drift.check": document["check"],
        "drift.decision": document["decision"],
        "drift.data": document["data"]["id"],
        "drift.champion": f"{document['champion']['model']}@{document['champion']['version']}",
        "drift.reason": "; ".join(document["reasons"])[:5000],
    }
    run = client.create_run(experiment, tags=tags)
    now = run.info.start_time
    metrics = [Metric(key, value, now, 0) for key, value in report.numbers(document).items()]
    client.log_batch(run.info.run_id, metrics=metrics[:1000], tags=[RunTag("drift.done", "true")])
    client.log_artifact(run.info.run_id, str(folder / REPORT))
    client.log_dict(run.info.run_id, dict(document), DOCUMENT)
    client.set_terminated(run.info.run_id)
    server = _server()
    return f"{server}/#/experiments/{experiment}/runs/{run.info.run_id}" if server else None


def _server() -> str | None:
    """The address of MLflow's pages."""
    import mlflow

    uri = store.without_password(mlflow.get_tracking_uri()).rstrip("/")
    return uri if re.match("https?://", uri) else "http://127.0.0.1:5000"


# --- Prefect --------------------------------------------------------------------------------------

_STATES = {
    "drift": "Drift found",
    "none": "No drift",
    "too_few": "Too few rows",
    "nothing": "Nothing new",
}


@flow(name="drift", description="Compare what arrived with what the champion learned from",
      persist_result=False)  # fmt: skip
def drift(against: str | None = None) -> State[Any]:
    """Check for drift; when it is found, say so in an event, which an automation may answer.

    A check that has fired is told again as long as its files and its champion are the same: whether
    it was heard is not known here, and who hears it has a journal.
    """
    params = load(Path("params.yaml"))
    try:
        done = check(params, against)
    except store.Unreachable as error:
        raise StageError(f"{error}; {error.remedy}") from error
    _publish(done)
    if done.decision == "drift":
        assert done.document is not None
        found = {
            "check": done.name,
            "data": done.document["data"]["id"],
            "reason": done.document["reasons"][0],
        }
        events.tell(events.DRIFT_FOUND, params.register_.name, found, again=done.known)
    return Completed(name=_STATES[done.decision], message="\n".join(done.lines()))


def _publish(done: Check) -> None:
    """Show the check in Prefect. What cannot be shown there is in its folder all the same."""
    from prefect.artifacts import (
        create_link_artifact,
        create_markdown_artifact,
        create_table_artifact,
    )

    try:
        links = {}
        if done.folder is not None and done.document is not None:
            place = (done.folder / REPORT).resolve().as_uri()
            links["drift-report"] = ("The drift report, on this machine", place)
            if done.run is not None:
                links["drift-in-mlflow"] = ("The drift check in MLflow", done.run)
            rows = report.table(done.document)
            create_table_artifact(key="drift-tests", table=rows, description=done.message)
        for key, (text, address) in links.items():
            create_link_artifact(key=key, link=address, link_text=text)
        page = report.markdown_page(done.lines(), done.document, dict(links.values()))
        create_markdown_artifact(key="drift", markdown=page, description=done.message[:200])
    except Exception as error:
        log.warning("the check is not shown in Prefect (%s); see %s", error, done.folder)
