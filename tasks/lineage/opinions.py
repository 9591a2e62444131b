"""What people and a language model said of a version: sealed documents that lie with it in MLflow.

As `attached` keeps them:

    opinions/judgement-HASH.json   what `tunetrail judge` was answered
    opinions/export-HASH.json      which side was which on a page of `tunetrail review export`
    opinions/votes-HASH.json       one person's votes on such a page
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ruamel.yaml import YAML

from tasks.lineage import attached, evidence, seal, signing, verify
from tasks.lineage.evidence import Evidence
from tasks.lineage.signing import BadSignature
from tasks.lineage.stage import GateError, StageError
from tasks.lineage.statement import Statement
from tasks.voting import pairs

if TYPE_CHECKING:
    from mlflow import MlflowClient

Kind = Literal["judgement", "export", "votes"]
"""Also the purpose for which it is sealed."""

Document = Mapping[str, Any]
Fixed = Literal["yes", "no", "unknown"]

RUBRIC_PARAM = "judge.rubric_sha256"
"""Of the run of each stage: MLflow takes a parameter once and never changes it."""

_FIELDS: dict[Kind, dict[str, type]] = {
    "judgement": {
        "answer": str, "win_rate": dict, "fixed_before_training": str, "pairs": list,
        "model": str, "against": str, "rubric_sha256": str, "test_rows": int, "same_answer": int,
    },
    "export": {"export": str, "against": str, "pairs": dict},
    "votes": {"export": str, "against": str, "person": str, "scores": dict},
}  # fmt: skip


@dataclass(frozen=True)
class Opinions:
    """The documents of a version that a trusted key has sealed, oldest first."""

    judgements: list[Document] = field(default_factory=list)
    exports: list[Document] = field(default_factory=list)
    votes: list[Document] = field(default_factory=list)
    untrusted: list[str] = field(default_factory=list)
    """The others, a line each: which, and why it does not count."""

    def scores(self, against: str) -> dict[str, dict[str, float]]:
        """What people voted on the final candidate against another: scores by person and row."""
        found: dict[str, dict[str, float]] = {}
        for document in self.votes:
            if document["against"] == against:
                found.setdefault(document["person"], {}).update(document["scores"])
        return found


def read(client: MlflowClient, version: Any, root: Path) -> Opinions:
    """All that lies with a version.

    Raises:
        StageError: when it cannot be read.
    """
    found = Opinions()
    sorted_in: dict[Kind, list[Document]] = {
        "judgement": found.judgements, "export": found.exports, "votes": found.votes
    }  # fmt: skip
    trusted = signing.trusted_keys(root)
    for name, text in attached.read(client, version, evidence.OPINIONS).items():
        try:
            kind, document = _checked(name, text, version.tags.get("identity"), trusted)
        except BadSignature as error:
            found.untrusted.append(f"{name}: {error}")
        else:
            sorted_in[kind].append(document)
    for documents in sorted_in.values():
        documents.sort(key=lambda document: str(document["at"]))
    return found


def _checked(
    name: str, text: str, identity: str | None, trusted: Mapping[str, Path]
) -> tuple[Kind, Document]:
    """A document of this version, which says what its kind must say.

    Raises:
        BadSignature: when it is something else, or nobody who is trusted has sealed it.
    """
    try:
        document = json.loads(text)
        kind: Kind = document["kind"]
        fields = {"at": str, "by": str, "identity": str, **_FIELDS[kind]}
        well_formed = all(isinstance(document[key], type_) for key, type_ in fields.items())
    except (ValueError, KeyError, TypeError):
        well_formed = False
    if not well_formed:
        raise BadSignature("not written by Tunetrail")
    seal.check(kind, document, trusted)
    if document["identity"] != identity:
        raise BadSignature(f"is about another version, with identity {document['identity']}")
    return kind, document


def add(client: MlflowClient, version: Any, kind: Kind, said: Document, by: str) -> Document:
    """Seal a document with the key of whoever works here, and keep it with the version."""
    document = seal.sealed(
        kind,
        {
            "kind": kind,
            "version": f"{version.name}@{version.version}",
            "identity": version.tags["identity"],
            "at": now(),
            "by": by,
            **said,
        },
        signing.signing_key(),
    )
    attached.add(client, version.run_id, evidence.OPINIONS, kind, document)
    return document


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Subject:
    """A version whose answers are to be compared, as its signed files have it."""

    version: Any
    """MLflow's."""
    author: str
    final: str
    against: str
    """The candidate to compare with, as the version's own `judge.against` says."""
    confidence: float
    seed: int
    judge: Mapping[str, Any]
    """The section of the version's own params.yaml."""
    fixed: Fixed
    """Whether the rubric was this one before training."""
    predictions: Path
    """Is gone with the context in which the subject was read."""

    @property
    def reference(self) -> str:
        return f"{self.version.name}@{self.version.version}"

    def draw(self, count: int, against: str | None = None) -> pairs.Drawn:
        """Pairs to compare, with the candidate that the version names or with another."""
        return pairs.draw(self.predictions, self.final, against or self.against, count, self.seed)


@contextmanager
def subject(client: MlflowClient, reference: str, root: Path) -> Iterator[Subject]:
    """Read a version of which somebody is to be asked.

    Raises:
        evidence.NotFound: when there is no such version.
        GateError: when its files are not what was signed.
        StageError: when it was registered before answers could be compared.
    """
    name, number = evidence.parse(reference)
    version = evidence.find(client, name, number)
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        found = evidence.collect(client, version, Path(folder))
        _refuse_unsigned(client, found, root)
        said = Statement.read(found.files[evidence.STATEMENT])
        comparison = compared(found)
        predictions = found.files.get(f"{evidence.REPORT}/predictions.jsonl")
        if comparison is None or predictions is None:
            missing = f"no section judge in its {evidence.PARAMS}"
            raise StageError(
                f"{reference} has {missing if comparison is None else 'no predictions.jsonl'}, as "
                "it was before answers could be compared; register the model anew with "
                "`tunetrail run`"
            )
        yield Subject(
            version=version,
            author=said.author,
            final=found.read_json(evidence.VERDICT)["candidate"],
            predictions=predictions,
            fixed=_fixed_before_training(
                client, found.read_json(evidence.PROVENANCE), comparison["judge"]
            ),
            **comparison,
        )


def compared(found: Evidence) -> dict[str, Any] | None:
    """What the version's own files say of how its answers are compared: `against`, `confidence`,
    `seed` and its section `judge`; None when it was registered before that was asked."""
    values = YAML(typ="safe").load(found.files[evidence.PARAMS].read_text(encoding="utf-8"))
    judge = values.get("judge")
    if judge is None:
        return None
    return {
        "judge": judge,
        "against": pairs.opponent(judge["against"], found.read_json(evidence.METRICS)),
        "confidence": values["evaluate"]["confidence"],
        "seed": values["compute"]["seed"],
    }


def _refuse_unsigned(client: MlflowClient, found: Evidence, root: Path) -> None:
    for finding in verify.check(client, found, root).failed:
        if finding.check in ("signature", "files", "statement", "identity"):
            raise GateError(
                f"{found.model}@{found.number}: its {finding.check} does not hold: {finding.why}; "
                "what was not signed is not worth comparing"
            )


def _fixed_before_training(
    client: MlflowClient, facts: Mapping[str, Any], judge: Mapping[str, Any]
) -> Fixed:
    """Whether the rubric was this one when these weights were first trained, as the runs recorded
    it; `unknown` without such a run.

    Of several runs that gave the same weights the first one counts: to train the same again with
    another rubric in params.yaml fixes nothing beforehand.
    """
    sections = {key: values for stage in facts["stages"] for key, values in stage["params"].items()}
    trained = "sft" if sections.get("sft", {}).get("enabled", True) else "cpt"
    outputs = [stage["outputs"] for stage in facts["stages"] if stage["stage"] == trained]
    digest = outputs[0].get(f"models/{trained}", {}).get("md5") if outputs else None
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments, f"tags.`out:models/{trained}` = '{digest}'", order_by=["start_time ASC"]
    )
    recorded = runs[0].data.params.get(RUBRIC_PARAM) if runs else None
    if recorded is None:
        return "unknown"
    return "yes" if recorded == rubric_sha256(judge) else "no"


def rubric_sha256(judge: Mapping[str, Any]) -> str:
    """Of the rubric in a version's own section `judge`, as the runner records it."""
    return hashlib.sha256(str(judge["rubric"]).encode()).hexdigest()
