"""The statement that is kept with a version: who made it when, from which commit, on what machine.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) whose predicate is SLSA provenance v1
(https://slsa.dev/spec/v1.0/provenance).  Its subjects are the provenance, whose sha256 is the
version's identity, and every other file of the version.  Fields that SLSA does not have begin with
`tunetrail_`, as it asks for.  The provenance knows content alone; whatever differs from one build
of the same content to the next stands here, and the signature covers both.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from tasks.lineage import git
from tasks.lineage.stage import StageError, record_path

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:tunetrail:dvc-pipeline:v1"
BUILDER = "urn:tunetrail:register:v1"
IDENTITY = "provenance.json"
"""The subject that identifies the version."""

_SOURCE, _CHANGES, _LOCK = "source", "uncommitted changes", "requirements.lock"


@dataclass(frozen=True)
class StageRun:
    """The MLflow run that made what the provenance names. Times in milliseconds since 1970."""

    run_id: str
    started: int
    finished: int | None


def build(
    name: str,
    files: Mapping[str, str],
    facts: Mapping[str, Any],
    verdict: Mapping[str, Any],
    work_tree: git.WorkTree,
    runs: Mapping[str, StageRun],
    datasets: Mapping[str, str],
    machine: Mapping[str, Any],
    author: str,
    run_id: str,
    finished: int,
) -> dict[str, Any]:
    """The statement about one registration.

    Args:
        name: of the registered model.
        files: sha256 of every file of the version, by its path there.
        facts: content of the provenance.
        runs: by stage; those that MLflow knows at that time.
        datasets: sha256 by path of the data that was trained and tested on.
        run_id: of the candidate's own run.
        finished: when, in milliseconds since 1970.
    """
    started = min([run.started for run in runs.values()], default=finished)
    params = {key: value for stage in facts["stages"] for key, value in stage["params"].items()}
    return {
        "_type": TYPE,
        "subject": [{"name": path, "digest": {"sha256": files[path]}} for path in sorted(files)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {
                    "model": name,
                    "params": params,
                    "params_sha256": facts["params_sha256"],
                    "base": facts["base"],
                },
                "internalParameters": {"chat_contract_sha256": facts["chat_contract_sha256"]},
                "resolvedDependencies": _dependencies(facts, work_tree),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"tunetrail": _version()}},
                "metadata": {
                    "invocationId": run_id,
                    "startedOn": _time(started),
                    "finishedOn": _time(finished),
                },
                "byproducts": [*map(_run, runs, runs.values()), *_datasets(datasets)],
                "tunetrail_verdict": dict(verdict),
                "tunetrail_author": author,
                "tunetrail_branch": work_tree.branch,
                "tunetrail_machine": dict(machine),
            },
        },
    }


def as_text(document: Mapping[str, Any]) -> str:
    """As it is written to a file and signed."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _dependencies(facts: Mapping[str, Any], work_tree: git.WorkTree) -> list[dict[str, Any]]:
    """Commit, uncommitted changes, packages, and everything that a stage read and none made."""
    found: list[dict[str, Any]] = []
    if work_tree.commit:
        address = f"git+{work_tree.remote}" if work_tree.remote else "git:local"
        source = {"name": _SOURCE, "uri": address, "digest": {"gitCommit": work_tree.commit}}
        found.append(source)
    if work_tree.changes:
        found.append(
            {
                "name": _CHANGES,
                "mediaType": "text/x-patch",
                "digest": {"sha256": hashlib.sha256(work_tree.changes).hexdigest()},
                "content": base64.b64encode(work_tree.changes).decode(),
                "annotations": {"files": list(work_tree.changed)},
            }
        )
    found.append({"name": _LOCK, "digest": {"sha256": facts["environment_sha256"]}})
    for path, digest in sorted(sources(facts).items()):
        if path != _LOCK:
            found.append({"name": path, "digest": {"dvcMd5": digest}})
    return found


def sources(facts: Mapping[str, Any]) -> dict[str, str]:
    """DVC's hash of everything that a stage read and none made, by path."""
    made = {path for stage in facts["stages"] for path in stage["outputs"]}
    made |= {record_path(stage["stage"]) for stage in facts["stages"]}
    return {
        path: digest
        for stage in facts["stages"]
        for path, digest in stage["inputs"].items()
        if path not in made
    }


def _run(stage: str, run: StageRun) -> dict[str, Any]:
    times = {"startedOn": _time(run.started)}
    if run.finished is not None:
        times["finishedOn"] = _time(run.finished)
    return {"name": f"run:{stage}", "uri": f"runs:/{run.run_id}", "annotations": times}


def _datasets(datasets: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": f"data:{path}", "digest": {"sha256": digest}} for path, digest in datasets.items()
    ]


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version() -> str:
    try:
        return metadata.version("tunetrail")
    except metadata.PackageNotFoundError:  # it runs from its source alone
        return "source"


@dataclass(frozen=True)
class Statement:
    """A statement that was read."""

    document: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Statement:
        """Read a statement of this kind; whether it is signed is another question.

        Raises:
            StageError: when it is of another kind.
        """
        document = json.loads(path.read_text(encoding="utf-8"))
        kind = (document["_type"], document["predicateType"])
        built = document["predicate"]["buildDefinition"]["buildType"]
        if (*kind, built) != (TYPE, PREDICATE, BUILD):
            raise StageError(
                f"{path.name} is a statement of another kind ({built}); "
                "read it with the version of Tunetrail that wrote it"
            )
        return cls(document)

    @property
    def files(self) -> dict[str, str]:
        """sha256 of every file that it speaks of, by path."""
        return {entry["name"]: entry["digest"]["sha256"] for entry in self.document["subject"]}

    @property
    def identity(self) -> str:
        return self.files[IDENTITY]

    @property
    def model(self) -> str:
        """The registered model that the version was made in."""
        return str(self._definition["externalParameters"]["model"])

    @property
    def params(self) -> dict[str, Any]:
        """Every section of params.yaml that a stage read."""
        return dict(self._definition["externalParameters"]["params"])

    @property
    def params_sha256(self) -> str:
        return str(self._definition["externalParameters"]["params_sha256"])

    @property
    def base(self) -> dict[str, Any]:
        return dict(self._definition["externalParameters"]["base"])

    @property
    def commit(self) -> str | None:
        """None when the version was made outside of git."""
        source = self._dependencies.get(_SOURCE)
        return str(source["digest"]["gitCommit"]) if source else None

    @property
    def remote(self) -> str | None:
        """The repository's address, without credentials."""
        address = str(self._dependencies.get(_SOURCE, {}).get("uri", ""))
        return address.removeprefix("git+") if address.startswith("git+") else None

    @property
    def branch(self) -> str | None:
        branch = self._details["tunetrail_branch"]
        return str(branch) if branch else None

    @property
    def changes(self) -> bytes:
        """What differed from the commit, as a patch for `git apply`; empty when nothing did.

        Raises:
            StageError: when the patch is not the one whose hash stands beside it.
        """
        entry = self._dependencies.get(_CHANGES)
        if entry is None:
            return b""
        patch = base64.b64decode(entry["content"], validate=True)
        if hashlib.sha256(patch).hexdigest() != entry["digest"]["sha256"]:
            raise StageError("the patch in the statement is not the one whose hash it gives")
        return patch

    @property
    def changed_files(self) -> Sequence[str]:
        entry = self._dependencies.get(_CHANGES)
        return list(entry["annotations"]["files"]) if entry else []

    @property
    def sources(self) -> dict[str, str]:
        """DVC's hash of what was read and not made: raw data, code."""
        return {
            name: entry["digest"]["dvcMd5"]
            for name, entry in self._dependencies.items()
            if "dvcMd5" in entry.get("digest", {})
        }

    @property
    def runs(self) -> dict[str, str]:
        """MLflow run id by stage, as known when the version was made."""
        return {
            entry["name"].removeprefix("run:"): entry["uri"].removeprefix("runs:/")
            for entry in self._details["byproducts"]
            if entry["name"].startswith("run:")
        }

    @property
    def datasets(self) -> dict[str, str]:
        """sha256 by path."""
        return {
            entry["name"].removeprefix("data:"): entry["digest"]["sha256"]
            for entry in self._details["byproducts"]
            if entry["name"].startswith("data:")
        }

    @property
    def run_id(self) -> str:
        """Of the candidate's own run."""
        return str(self._details["metadata"]["invocationId"])

    @property
    def finished_on(self) -> str:
        """When the version was registered, in RFC 3339."""
        return str(self._details["metadata"]["finishedOn"])

    @property
    def verdict(self) -> dict[str, Any]:
        return dict(self._details["tunetrail_verdict"])

    @property
    def author(self) -> str:
        return str(self._details["tunetrail_author"])

    @property
    def machine(self) -> dict[str, Any]:
        """As `machine.facts` of where the version was registered."""
        return dict(self._details["tunetrail_machine"])

    @property
    def _definition(self) -> Mapping[str, Any]:
        definition: Mapping[str, Any] = self.document["predicate"]["buildDefinition"]
        return definition

    @property
    def _details(self) -> Mapping[str, Any]:
        details: Mapping[str, Any] = self.document["predicate"]["runDetails"]
        return details

    @cached_property
    def _dependencies(self) -> dict[str, Mapping[str, Any]]:
        return {entry["name"]: entry for entry in self._definition["resolvedDependencies"]}
