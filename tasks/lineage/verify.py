"""Whether a registered version is what was signed, and says what its files say.

Nothing is run: files are read, hashed and compared.  Every check fails when what it needs is missing
or cannot be read, so that no damage makes one pass.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import evidence, hashes, signing, statement, store
from tasks.lineage.evidence import Evidence
from tasks.lineage.statement import Statement

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SHOWN = 5
"""As many files or tags are named in one finding."""


@dataclass(frozen=True)
class Finding:
    """One check: whether it holds, and why."""

    check: str
    holds: bool
    why: str
    mendable: bool = False
    """Whether `why` says what mends it; the version need not be registered anew."""


@dataclass(frozen=True)
class Report:
    """What was found about a version."""

    model: str
    number: int
    identity: str
    """The tag of that name; proven when all findings hold."""
    signer: str
    """Fingerprint of the key that is said to have signed it."""
    findings: list[Finding]

    @property
    def holds(self) -> bool:
        return all(finding.holds for finding in self.findings)

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.holds]

    @property
    def mendable(self) -> bool:
        """Whether everything that fails can be mended where it lies."""
        return all(finding.mendable for finding in self.failed)


class _Fails(Exception):
    """A check does not hold. The message says why, and what mends it where that is known."""

    mendable = False


class _Mendable(_Fails):
    mendable = True


def verify(name: str, version: str, root: Path = Path()) -> Report:
    """Check a version of a registered model against its signed documents.

    Args:
        name: of the registered model.
        version: its number, or an alias.
        root: the repository, which says whose signatures are trusted.

    Raises:
        store.Unreachable: when MLflow does not answer.
        evidence.NotFound: when there is no such version.
        signing.KeyProblem: when a trusted key cannot be read.
    """
    client = store.connect()
    found = evidence.find(client, name, version)
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        return check(client, evidence.collect(client, found, Path(folder)), root)


def check(client: MlflowClient, version: Evidence, root: Path) -> Report:
    """As `verify`, of a version that was read already."""
    checks = _Checks(client, version, signing.trusted_keys(root))
    return Report(
        model=version.model,
        number=version.number,
        identity=version.tags.get("identity", ""),
        signer=version.tags.get("signer", ""),
        findings=[_finding(name, check) for name, check in checks.all()],
    )


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except _Fails as failure:
        return Finding(name, False, str(failure), failure.mendable)
    except KeyError as error:
        return Finding(name, False, f"{error.args[0]} is missing")
    except Exception as error:  # arbitrary content was read: whatever it caused, nothing is proven
        return Finding(name, False, f"cannot be checked: {type(error).__name__}: {error}"[:300])


@dataclass(frozen=True)
class _Checks:
    client: MlflowClient
    version: Evidence
    trusted: Mapping[str, Path]

    def all(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "signature", self.signature
        yield "files", self.files
        yield "statement", self.statement
        yield "identity", self.identity
        yield "provenance", self.provenance
        yield "stages", self.stages
        yield "base", self.base
        yield "verdict", self.verdict
        yield "contract", self.contract
        yield "tags", self.tags
        yield "numbers", self.numbers
        yield "runs", self.runs

    # What the checks read. Each property may raise; the check that asks for it fails then.

    @cached_property
    def facts(self) -> dict[str, Any]:
        return self.version.read_json(evidence.PROVENANCE)

    @cached_property
    def said(self) -> Statement:
        return Statement.read(self.version.files[evidence.STATEMENT])

    @cached_property
    def decided(self) -> dict[str, Any]:
        return self.version.read_json(evidence.VERDICT)

    @cached_property
    def measured(self) -> dict[str, Any]:
        return self.version.read_json(evidence.METRICS)

    @property
    def unsigned(self) -> dict[str, str]:
        """sha256 of every file but the signature."""
        files = self.version.sha256.items()
        return {name: digest for name, digest in files if name != evidence.SIGNATURE}

    def signature(self) -> str:
        """A trusted key has signed exactly these files, and the tags name that signature."""
        if self.version.run is None:
            raise _Fails("the run that registered it is gone from MLflow, and its evidence with it")
        path = self.version.files[evidence.SIGNATURE]
        try:
            signer = signing.check(self.unsigned, path, self.trusted)
        except signing.Stranger as error:
            raise _Mendable(str(error)) from None
        except signing.BadSignature as error:
            raise _Fails(str(error)) from None
        # of one content several signatures hold: a signature can be altered and still hold
        _agree("tag signer", self.version.tags.get("signer"), signer)
        _agree(
            "tag signature",
            self.version.tags.get("signature"),
            self.version.sha256[evidence.SIGNATURE],
        )
        return f"by {signer}, trusted as {self.trusted[signer]}"

    def files(self) -> str:
        """Nothing is changed, missing or added since it was signed."""
        signed = signing.signed_files(self.version.files[evidence.SIGNATURE])
        _same_files(self.unsigned, signed)
        return f"{len(signed)} are as they were signed"

    def statement(self) -> str:
        """The statement is the signed one, and about these files."""
        digest = self.version.sha256[evidence.STATEMENT]
        _agree("tag statement", self.version.tags.get("statement"), digest)
        others = {name: sha for name, sha in self.unsigned.items() if name != evidence.STATEMENT}
        _same_files(others, self.said.files)
        if self.said.model not in (self.version.model, f"{self.version.model}-candidates"):
            raise _Fails(f"it is about a version of {self.said.model}, another model")
        _agree("its run", self.said.run_id, self.version.run.info.run_id)
        _agree("its parameters", self.said.params_sha256, self.facts["params_sha256"])
        _agree("its base", self.said.base, self.facts["base"])
        _agree("its verdict", self.said.verdict, self.decided)
        sources = statement.sources(self.facts)
        lock = sources.pop(evidence.LOCK, None)
        _agree("its sources", self.said.sources, sources)
        changes = len(self.said.changes)
        where = f"commit {self.said.commit}" if self.said.commit else "no commit"
        locked = "" if lock is None else ", packages locked"
        return f"{where}, {changes:,} bytes of uncommitted changes{locked}"

    def identity(self) -> str:
        """The tag by which the version is found is the sha256 of its provenance."""
        digest = self.version.sha256[evidence.PROVENANCE]
        _agree("tag identity", self.version.tags.get("identity"), digest)
        _agree("the statement's subject", self.said.identity, digest)
        return digest

    def provenance(self) -> str:
        """The provenance describes the files that lie with it."""
        described = 0
        for folder, manifest in self.facts["files"].items():
            where = self._place(folder)
            if where is not None:
                _same_files(_without_notes(self.version.below(where)), manifest, f"{where}/")
                described += len(manifest)
        made = self._made()
        found = self.version.sha256
        report = hashes.sha256_json(_without_notes(self.version.below(evidence.REPORT)))
        for name, recorded, digest in (
            (evidence.VERDICT, made["models/verdict.json"], found[evidence.VERDICT]),
            (evidence.METRICS, made["models/evaluate.metrics.json"], found[evidence.METRICS]),
            (evidence.REPORT, made["models/report"], report),
            (evidence.CONTRACT, self.facts["chat_contract_sha256"], found[evidence.CONTRACT]),
            (evidence.LOCK, self.facts["environment_sha256"], found[evidence.LOCK]),
        ):
            _agree(name, digest, recorded)
        params = {
            section: values
            for stage in self.facts["stages"]
            for section, values in stage["params"].items()
        }
        _agree("the parameters' hash", self.facts["params_sha256"], hashes.sha256_json(params))
        return f"describes {described} files of the model, and all evidence"

    def _place(self, folder: str) -> str | None:
        """Where a folder that the provenance tells of lies in the version; None where it does not:
        of the two forms of the model one is served, and the merged one lies beside it always."""
        if folder == "onnx":
            served = f"{evidence.MODEL}/{evidence.SERVED.format('onnx')}"
            return served if self.facts["files"]["onnx"] or self.version.below(served) else None
        return folder

    def _made(self) -> dict[str, str]:
        """sha256 of each output, by path."""
        return {
            path: output["sha256"]
            for stage in self.facts["stages"]
            for path, output in stage["outputs"].items()
        }

    def stages(self) -> str:
        """Each stage read what an earlier one made, or a source that is the same for all."""
        known: dict[str, tuple[str, str]] = {}
        sections: dict[str, Any] = {}
        for record in self.facts["stages"]:
            stage = record["stage"]
            for path, digest in record["inputs"].items():
                teller, other = known.setdefault(path, (f"{stage} read", digest))
                if digest != other:
                    raise _Fails(f"{stage} read {path} as {digest}, but {teller} {other}")
            for path, output in record["outputs"].items():
                if path in known:
                    teller, _ = known[path]
                    raise _Fails(f"{stage} made {path}, which {teller} before")
                known[path] = (f"{stage} made", output["md5"])
            for section, values in record["params"].items():
                if sections.setdefault(section, values) != values:
                    raise _Fails(f"{stage} read another section {section} than those before it")
        names = [record["stage"] for record in self.facts["stages"]]
        return " > ".join(names)

    def base(self) -> str:
        """The base model is pinned by content."""
        base = self.facts["base"]
        params = self.facts["stages"]
        settings = next(stage["params"]["base"] for stage in params if "base" in stage["params"])
        _agree("its source", base["source"], settings["source"])
        _agree("what is pinned", base["pinned"], settings[settings["source"]])
        made = self._made()
        for path, output in base["outputs"].items():
            _agree(path, output["sha256"], made[path])
        if base["source"] == "hub":
            revision = str(base["pinned"]["revision"])
            if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
                raise _Fails(f"revision {revision!r} is no commit, and can move")
        return evidence.base_name(base)

    def verdict(self) -> str:
        """The verdict follows from the metrics and the gates."""
        settings = next(
            stage["params"]["evaluate"]
            for stage in self.facts["stages"]
            if "evaluate" in stage["params"]
        )
        return replayed(self.decided, self.measured, settings)

    def contract(self) -> str:
        """What is served renders chats as the model was trained."""
        from tasks.lineage import chat_contract

        folder = f"{self.version.served}/"
        served = {
            name.removeprefix(folder): path
            for name, path in self.version.files.items()
            if name.startswith(folder)
        }
        agreed = self.version.read_json(evidence.CONTRACT)
        if problem := chat_contract.problem(served, agreed):
            raise _Fails(problem)
        fixtures = sum(fixture is not None for fixture in agreed["fixtures"])
        return f"{fixtures} chats are rendered as in training"

    def tags(self) -> str:
        """What people read on the version is what the signed files say."""
        expected = evidence.tags(self.facts, self.decided, self.said)
        told = self.version.tags
        wrong = [name for name in sorted(expected) if told.get(name) != expected[name]]
        invented = [
            name
            for name in sorted(told)
            if name.startswith(("gate:", "data:", "git.")) and name not in expected
        ]
        if wrong or invented:
            named = wrong + invented
            raise _Fails(
                f"{_some(named)} of the version's tags differ from the signed files: "
                f"{named[0]} is {told.get(named[0])!r}, signed is {expected.get(named[0])!r}"
            )
        described = evidence.describe(self.facts, self.decided, self.measured)
        if not self.version.description.startswith(described):
            raise _Fails(
                "the description does not begin with the numbers of the signed files; "
                "restore it, and add remarks below"
            )
        return f"{len(expected)} tags and the description say what the files say"

    def numbers(self) -> str:
        """Metrics and data of the run are those of the signed files."""
        expected = evidence.metrics(self.decided, self.measured)
        shown = dict(self.version.run.data.metrics)
        differing = [
            name for name in sorted({*expected, *shown}) if shown.get(name) != expected.get(name)
        ]
        if differing:
            name = differing[0]
            raise _Fails(
                f"{_some(differing)} of the run's metrics differ from {evidence.METRICS}: "
                f"{name} is {shown.get(name)}, signed is {expected.get(name)}"
            )
        data = {
            json.loads(entry.dataset.source)["uri"]: tag.value
            for entry in self.version.run.inputs.dataset_inputs
            for tag in entry.tags
            if tag.key == evidence.DATASET_TAG
        }
        _agree("the run's datasets", data, self.said.datasets)
        return f"{len(expected)} metrics and {len(data)} datasets of the run are the signed ones"

    def runs(self) -> str:
        """Each linked run has made what the provenance names."""
        linked = {
            name.removeprefix("run:"): run
            for name, run in self.version.tags.items()
            if name.startswith("run:")
        }
        for stage, run in self.said.runs.items():
            _agree(f"tag run:{stage}", linked.get(stage), run)
        made = {stage["stage"]: stage["outputs"] for stage in self.facts["stages"]}
        for stage, run in linked.items():
            if stage not in made:
                raise _Fails(f"tag run:{stage} names a stage that made nothing of this version")
            tags = self.client.get_run(run).data.tags
            outputs = [(f"out:{path}", output["md5"]) for path, output in made[stage].items()]
            if not any(tags.get(name) == digest for name, digest in outputs):
                raise _Fails(f"run {run} of tag run:{stage} did not make what the provenance names")
        missing = [stage for stage in made if stage not in linked]
        without = f"; without a run: {', '.join(missing)}" if missing else ""
        return f"{len(linked)} stages link the run that made their outputs{without}"


def _agree(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise _Fails(f"{what} is {_brief(found)}, but must be {_brief(expected)}")


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    if len(text) <= 100:
        return text or "empty"
    return f"{text[:60]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"


def _same_files(found: Mapping[str, str], expected: Mapping[str, str], prefix: str = "") -> None:
    """Compare hashes by path."""
    changed = [name for name in expected if name in found and found[name] != expected[name]]
    missing = [name for name in expected if name not in found]
    added = [name for name in found if name not in expected]
    told = [
        f"{what}: {_some([prefix + name for name in names])}"
        for what, names in (("changed", changed), ("missing", missing), ("added", added))
        if names
    ]
    if any("__pycache__/" in name for name in added):
        told.append(
            "Python wrote that when the model was loaded where it lies, and runs it in place of its "
            "source: delete it"
        )
    if told:
        raise _Fails("; ".join(told))


def _without_notes(manifest: Mapping[str, str]) -> dict[str, str]:
    """What DVC hashes of a folder; see `hashes.files_below`."""
    return {name: digest for name, digest in manifest.items() if Path(name).name != "README.md"}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def replayed(
    decided: Mapping[str, Any], measured: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """Give a verdict again, from the numbers and the gates alone.

    Args:
        decided: what verdict.json holds.
        measured: what evaluate.metrics.json holds.
        settings: the section `evaluate` that the version was made with.

    Returns:
        the verdict and its gates, in words.

    Raises:
        _Fails: when the verdict is not the one that follows.
    """
    from pydantic import ValidationError

    from tasks.evaluation import gates
    from tasks.params import Gates

    try:
        limits = Gates.model_validate(settings["gates"])
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise _Fails(
            f"the section evaluate.gates it was made with cannot be judged by here ({place}: "
            f"{error.errors()[0]['msg']}); verify it at the commit that the statement names"
        ) from None
    again = gates.judge(measured, limits, settings.get("champion"))
    if _in_order(again) != _in_order(decided):
        raise _Fails(
            f"{evidence.VERDICT} says {_disagreement(decided, again)}, but metrics and gates give "
            f"{_disagreement(again, decided)}"
        )
    return f"{again['verdict']}: {_told(again['gates'])}"


def _in_order(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict whose gates are sorted: the provenance does not keep the order of params.yaml."""
    return {**verdict, "gates": sorted(verdict["gates"], key=_name_of)}


def _name_of(gate: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(gate.get(key)) for key in ("gate", "split", "metric"))


def _disagreement(verdict: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What a verdict says that another does not."""
    own = [gate for gate in verdict["gates"] if gate not in other["gates"]]
    if own:
        return _told(own)
    rest = [
        f"{key} {_brief(verdict.get(key))}"
        for key in sorted({*verdict, *other} - {"gates"})
        if verdict.get(key) != other.get(key)
    ]
    return ", ".join(rest) or f"{len(verdict['gates'])} gates"


def _told(gates: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{gate['metric']} {'passes' if gate['passed'] else 'fails'} ({gate['why']})"
        for gate in gates
    )
