"""What speaks for a candidate, and what stands against making it the champion."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.evaluation import conclusions
from tasks.lineage import (
    attached,
    evidence,
    hashes,
    opinions,
    promotion_gates,
    seal,
    signing,
    verify,
)
from tasks.lineage.audit import Record
from tasks.lineage.evidence import Evidence
from tasks.lineage.opinions import Opinions
from tasks.lineage.promotion_gates import Asked, Facts, Gate
from tasks.lineage.signing import BadSignature
from tasks.lineage.stage import GateError, StageError
from tasks.lineage.statement import Statement
from tasks.lineage.verify import Report
from tasks.params import Promote
from tasks.voting import counting

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATES = "-candidates"
PURPOSE = "reproduction"
"""For what its answers are sealed."""

_ENOUGH = {"identical": ("identical",), "equivalent": ("identical", "equivalent")}


class Refused(GateError):
    """A promotion or rollback is refused. `objections` are all reasons, each with its remedy."""

    def __init__(self, what: str, objections: list[str]) -> None:
        self.objections = objections
        count = "1 reason" if len(objections) == 1 else f"{len(objections)} reasons"
        super().__init__("\n".join([f"{what}: {count}", *(f"  {line}" for line in objections)]))


@dataclass(frozen=True)
class Case:
    """What is known of a candidate."""

    version: Any
    """MLflow's."""
    report: Report
    statement: Statement | None
    """None when it cannot be read; the report says why."""
    verdict: Mapping[str, Any]
    """From the signed file; empty when it cannot be read."""
    reproduction: Mapping[str, Any] | None
    """The newest answer of `tunetrail reproduce`."""
    forged: str | None
    """Why that answer cannot be trusted."""
    opinions: Opinions = field(default_factory=Opinions)
    """Of people and of a judge."""
    gates: list[Gate] = field(default_factory=list)
    """What params.yaml asks for in numbers."""
    judgement: Mapping[str, Any] | None = None
    """The one that counts."""

    @property
    def reference(self) -> str:
        return f"{self.version.name}@{self.version.version}"

    @property
    def champion_model(self) -> str:
        """The registered model that it is promoted to."""
        return champion_model(self.version.name)

    def evidence(self) -> dict[str, Any]:
        """What the audit record keeps of a case to which nothing was objected."""
        assert self.statement is not None and self.reproduction is not None
        return digest(
            hashes.sha256_json(self.statement.document),
            hashes.sha256_json(self.reproduction),
            [finding.check for finding in self.report.findings],
            [dict(gate) for gate in self.gates],
            self.counted(),
        )

    def counted(self) -> list[str]:
        """sha256 of each opinion that the gates have counted."""
        asked = {gate["gate"] for gate in self.gates}
        documents = [*(self.opinions.votes if "votes" in asked else [])]
        documents += [self.judgement] if self.judgement and "judge" in asked else []
        return sorted(map(hashes.sha256_json, documents))

    def lines(self) -> list[str]:
        """The evidence, a line each."""
        told = [
            f"{'holds' if finding.holds else 'FAILS'}  {finding.check}: {finding.why}"
            for finding in self.report.findings
        ]
        told += [
            f"{conclusions.result(gate) if gate['passed'] else 'FAILS'}  "
            f"gate {gate['split']}/{gate['metric']}: "
            f"{gate['why']}"
            for gate in self.verdict.get("gates", [])
        ]
        if self.reproduction is None:
            told.append("FAILS  reproduced: never")
        else:
            by = str(self.reproduction["by"])
            author = self.statement is not None and is_same_person(by, self.statement.author)
            told.append(
                f"{'FAILS' if self.forged else 'holds'}  reproduced: {self.reproduction['answer']} "
                f"at {self.reproduction['at']} by {by}{', its author' if author else ''}"
            )
        told += [
            f"{'holds' if gate['passed'] else 'FAILS'}  gate {gate['gate']}/{gate['metric']}: "
            f"{gate['why']}"
            for gate in self.gates
        ]
        known = len(self.opinions.judgements)
        for number, judgement in enumerate(self.opinions.judgements, start=1):
            of = f", {number} of {known} judgements" if known > 1 else ""
            counted = "" if judgement is self.judgement else "; not counted"
            told.append(f"noted  judge{of}: {_told(judgement)}{counted}")
        told += [f"noted  not counted: {line}" for line in self.opinions.untrusted]
        return told

    def markdown(self) -> str:
        """The evidence for a page of Prefect."""
        said = self.statement
        lines = [f"## {self.reference}", ""]
        if said is not None:
            lines += [f"By {said.author}, {said.finished_on}, commit {said.commit}", ""]
        lines += ["| | evidence | |", "| --- | --- | --- |"]
        for line in self.lines():
            outcome, _, rest = line.partition("  ")
            what, _, why = rest.partition(": ")
            lines.append(f"| {outcome} | {what} | {_cell(why)} |")
        return "\n".join(lines) + "\n"


def champion_model(candidates: str) -> str:
    """The name under which candidates of this registered model are promoted.

    Raises:
        Refused: when it holds no candidates.
    """
    name = candidates.removesuffix(CANDIDATES)
    if not name or name == candidates:
        text = f"`tunetrail promote {candidates}{CANDIDATES}@VERSION` promotes a candidate"
        raise Refused(
            f"{candidates} is not promoted", [f"{candidates} holds no candidates; {text}"]
        )
    return name


def _told(judgement: Mapping[str, Any]) -> str:
    fixed = {"yes": "fixed", "no": "NOT fixed"}.get(
        judgement["fixed_before_training"], "perhaps fixed"
    )
    rate = counting.shown(judgement["win_rate"])
    what = (
        f"win rate {rate}" if judgement["answer"] == "judged" else f"not judged, {judgement['why']}"
    )
    return (
        f"{what} against {judgement['against']}, by {judgement['model']} at {judgement['at']}; its "
        f"rubric was {fixed} before training"
    )


def digest(
    statement: str,
    reproduction: str,
    checks: list[str],
    gates: list[dict[str, Any]],
    opinions: list[str],
) -> dict[str, Any]:
    """What a promotion rests on: `statement` and `reproduction` as sha256, the `checks` of `verify`
    that held, the `gates` that params.yaml asked for with the sha256 of the `opinions` that they
    counted, and the `sha256` over all of it."""
    parts: dict[str, Any] = {
        "statement": statement, "reproduction": reproduction, "checks": sorted(checks)
    }  # fmt: skip
    if gates:
        parts |= {"gates": gates, "opinions": opinions}
    return {**parts, "sha256": hashes.sha256_json(parts)}


def gather(
    client: MlflowClient, reference: str, root: Path, settings: Promote | None = None
) -> Case:
    """Read and verify a candidate. Nothing is run, nothing is written.

    Args:
        settings: what is asked of it in numbers; None to ask for nothing.

    Raises:
        Refused: when the name is not that of a model with candidates.
        evidence.NotFound: when there is no such version.
    """
    name, number = evidence.parse(reference)
    champion_model(name)
    version = evidence.find(client, name, number)
    with read(client, version) as found:
        report = verify.check(client, found, root)
        statement = None
        verdict: Mapping[str, Any] = {}
        compared: Mapping[str, Any] | None = None
        if _is_signed(report):  # else it can hold anything; the report says so
            statement = Statement.read(found.files[evidence.STATEMENT])
            verdict = found.read_json(evidence.VERDICT)
            with contextlib.suppress(StageError):  # which a gate that needs it then misses
                compared = opinions.compared(found)
    said = opinions.read(client, version, root)
    facts = _facts(client, version, verdict, said, compared)
    gates = promotion_gates.judge(facts, settings) if settings else []
    answers = reproductions(client, version)
    newest = answers[-1] if answers else None
    return Case(
        version,
        report,
        statement,
        verdict,
        newest,
        forged(newest, root) if newest else None,
        said,
        gates,
        facts.counted,
    )


def _facts(
    client: MlflowClient,
    version: Any,
    verdict: Mapping[str, Any],
    said: Opinions,
    compared: Mapping[str, Any] | None,
) -> Facts:
    """What the gates of a promotion are held against."""
    against = compared["against"] if compared else None
    confidence = compared["confidence"] if compared else 0.95
    return Facts(
        reference=f"{version.name}@{version.version}",
        against=against,
        tally=counting.tally(said.scores(against) if against else {}, confidence),
        judgements=said.judgements,
        asked=_asked(compared["judge"]) if compared else None,
        latency=_latency(client, version, verdict),
    )


def _asked(own: Mapping[str, Any]) -> Asked:
    """From the version's own section judge."""
    return Asked(own["model"], opinions.rubric_sha256(own), own["pairs"])


def _latency(client: MlflowClient, version: Any, verdict: Mapping[str, Any]) -> float | None:
    """Seconds within which 95% of the candidate's answers came, where evaluate ran; None when that
    run is not linked, as `verify` would have checked."""
    from mlflow import MlflowException

    try:
        measured = client.get_run(version.tags["run:evaluate"]).data.metrics
        value = float(measured[f"{verdict['candidate']}/latency_p95_seconds"])
    except (KeyError, MlflowException):
        return None
    return value if math.isfinite(value) else None


def _is_signed(report: Report) -> bool:
    return not {"signature", "files"} & {finding.check for finding in report.failed}


@contextmanager
def read(client: MlflowClient, version: Any) -> Iterator[Evidence]:
    """A version's files, while they are needed."""
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        yield evidence.collect(client, version, Path(folder))


def reproductions(client: MlflowClient, version: Any) -> list[dict[str, Any]]:
    """The answers of `tunetrail reproduce`, oldest first; what is none is left out.

    Raises:
        StageError: when they cannot be read.
    """
    answers = []
    for text in attached.read(client, version, evidence.REPRODUCTIONS).values():
        with contextlib.suppress(ValueError):
            answer = json.loads(text)
            if _is_answer(answer):
                answers.append(answer)
    return sorted(answers, key=lambda answer: _time(answer["at"]))


def _is_answer(answer: object) -> bool:
    if not isinstance(answer, dict):
        return False
    try:
        told = all(isinstance(answer[key], str) for key in ("answer", "by", "identity"))
        return told and _time(answer["at"]).tzinfo is not None
    except (KeyError, TypeError, ValueError):
        return False


def forged(answer: Mapping[str, Any], root: Path) -> str | None:
    """Why an answer of `tunetrail reproduce` cannot be trusted; None when it can."""
    try:
        seal.check(PURPOSE, answer, signing.trusted_keys(root))
    except BadSignature as error:
        return str(error)
    return None


def objections(
    case: Case, record: Record, reviewer: str | None, settings: Promote, root: Path
) -> list[str]:
    """Why the candidate must not become the champion, each reason with its remedy.

    Args:
        reviewer: None while it is not known who it will be.
    """
    return [
        *_not_proven(case),
        *_not_reproduced(case, record, settings),
        *_not_asked_enough(case),
        *_not_reviewed(case, record, reviewer, root),
    ]


def _not_proven(case: Case) -> Iterator[str]:
    for finding in case.report.failed:
        remedy = "; do not promote it; register it anew from its sources with `tunetrail run`"
        yield f"verify {finding.check}: {finding.why}{'' if finding.mendable else remedy}"
    if case.verdict and case.verdict["verdict"] != "pass":
        failed = [gate["metric"] for gate in case.verdict["gates"] if not gate["passed"]]
        yield (
            f"the verdict is {case.verdict['verdict']} ({', '.join(failed)}); improve data or "
            "params.yaml, and `tunetrail run`"
        )


def _not_reproduced(case: Case, record: Record, settings: Promote) -> Iterator[str]:
    again = f"`tunetrail reproduce {case.reference}`"
    answer = case.reproduction
    if answer is None:
        yield f"nobody has reproduced it; {again}"
        return
    if case.forged:
        yield f"the answer of reproduce: {case.forged}; or {again}"
    if answer["answer"] not in _ENOUGH[settings.reproduced]:
        yield (
            f"reproduce answered {answer['answer']}, and promote.reproduced asks for "
            f"{settings.reproduced}; find out why, then {again}"
        )
    if answer["identity"] != case.version.tags.get("identity"):
        yield f"reproduce compared another version, with identity {answer['identity']}; {again}"
    if record.changed is not None and _time(answer["at"]) < record.changed:
        yield (
            f"it was reproduced at {answer['at']}, before the champion changed at "
            f"{record.changed:%Y-%m-%dT%H:%M:%SZ}; {again}"
        )


def _not_asked_enough(case: Case) -> Iterator[str]:
    for gate in case.gates:
        if not gate["passed"]:
            yield f"gate {gate['gate']}/{gate['metric']}: {gate['why']}; {gate['remedy']}"


def _not_reviewed(case: Case, record: Record, reviewer: str | None, root: Path) -> Iterator[str]:
    if reviewer is not None and not reviewer.strip():
        yield "nobody is named as reviewer; pass --reviewer, or `git config user.email`"
    elif reviewer and case.statement and is_same_person(reviewer, case.statement.author):
        yield f"{reviewer} is its author ({case.statement.author}); somebody else must review it"
    yield from _key_does_not_review(case, root)
    for problem in record.problems:
        yield (
            f"the audit record of {record.model} does not hold: {problem}; find out who did that, "
            "and restore MLflow's database from a backup"
        )


def _key_does_not_review(case: Case, root: Path) -> Iterator[str]:
    """A name is only said; the key shows who is at work, unless a team shares it."""
    private = signing.signing_key()
    key = signing.fingerprint(private)
    if private == signing.own_key() and key == case.report.signer:
        yield (
            f"your own key {private} has signed it, so you are its author; somebody else must review "
            f"it, with a key of their own (or name one in {signing.KEY_VARIABLE})"
        )
    if key not in signing.trusted_keys(root):
        yield (
            f"your key {key} is not trusted here, so nobody would believe your entry in the audit "
            f"record; put its public half into {signing.TRUSTED}/"
        )


def is_same_person(one: str, other: str) -> bool:
    """Whether two names can be of one person.  E-mail addresses tell, without case and what follows
    a +; a name without one is compared with the part before the @."""
    first, second = _address(one), _address(other)
    if "@" in first and "@" in second:
        return first == second
    return first.partition("@")[0] == second.partition("@")[0]


def _address(person: str) -> str:
    """`Ada <Ada+x@Example.com>` as ada@example.com; a name without address in lower case."""
    text = unicodedata.normalize("NFKC", person).casefold().strip()
    if text.endswith(">") and "<" in text:
        text = text[text.rindex("<") + 1 : -1].strip()
    local, at, domain = text.partition("@")
    return f"{local.partition('+')[0]}{at}{domain}" if at else " ".join(text.split())


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
