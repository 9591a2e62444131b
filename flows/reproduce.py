"""Build a registered version anew from what is recorded of it, and say whether it came out the same.

The answer is `identical` when every output of every stage has the hash that the provenance gives,
`equivalent` when what differs are numbers that lie within a tolerance, else `different`, with the
first stage that differs and what went into it that did.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows import dvc_dag, dvc_storage
from flows.clean_tree import LOCK, LOG, CleanTree, CleanTreeError, refuse_folder
from tasks.lineage import (
    attached,
    champion,
    compare,
    evidence,
    git,
    hashes,
    machine,
    provenance,
    review,
    seal,
    signing,
    store,
    verify,
)
from tasks.lineage.compare import Distance
from tasks.lineage.stage import GATE, StageError
from tasks.lineage.statement import Statement

if TYPE_CHECKING:
    from mlflow import MlflowClient

Answer = Literal["identical", "equivalent", "different"]

_WRITES_PROVENANCE = "register"
_PROVENANCE = Path("models/provenance.json")
_RECORDS = Path("models/records")

ASIDE = Path(".tunetrail/recorded")
"""Where in a tree outputs lie as they were recorded, to compare with."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """What MLflow has of a version."""

    model: str
    number: int
    run_id: str
    identity: str
    provenance: Mapping[str, Any]
    statement: Statement

    @property
    def name(self) -> str:
        return f"{self.model}@{self.number}"

    @property
    def stages(self) -> dict[str, Mapping[str, Any]]:
        """The record of each stage, by name, each behind those that it reads from."""
        return {record["stage"]: record for record in self.provenance["stages"]}

    @property
    def sources(self) -> dict[str, str]:
        """DVC's md5 of what was read and none made, by path."""
        made = {path for record in self.stages.values() for path in record["outputs"]}
        return {
            path: md5
            for record in self.stages.values()
            for path, md5 in record["inputs"].items()
            if path not in made
        }


@dataclass
class Reproduction:
    """What came of it."""

    answer: Answer
    tolerance: float
    stage: str | None = None
    """The first that differs, in the order of the DAG."""
    outputs: list[str] = field(default_factory=list)
    """Those that differ, of all stages that were compared."""
    causes: list[str] = field(default_factory=list)
    """Which inputs of that stage differ, or else which facts of the machine."""
    distance: Distance = field(default_factory=Distance)
    machine: Mapping[str, Any] = field(default_factory=dict)
    other_packages: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return GATE if self.answer == "different" else 0

    def lines(self) -> list[str]:
        """The reasons of the answer, a line each, for a console."""
        lines: list[str] = []
        if self.stage:
            lines.append(f"  first stage that differs: {self.stage}")
        lines += [f"  output {path} differs" for path in self.outputs]
        for what, largest in (("weight", self.distance.weights), ("metric", self.distance.metrics)):
            if largest.absolute:
                lines.append(
                    f"  largest {what} difference: {largest.absolute:.3g} absolute "
                    f"({largest.where}), {largest.relative:.3g} relative"
                )
        if self.answer == "equivalent":
            lines.append(f"  tolerance: {self.tolerance:g}")
        lines += [f"  {line}" for line in self.distance.unequal[:20]]
        if self.distance.pictures:
            lines.append(f"  not compared: {', '.join(self.distance.pictures)}")
        lines += [f"  {cause}" for cause in self.causes]
        return lines


def reproduce(
    name: str, keep: bool, folder: Path | None, any_environment: bool, tolerance: float, tell: Tell
) -> Reproduction:
    """Rebuild the version `NAME@VERSION`, compare, and write the answer on the version.

    Args:
        keep: leave the tree in which it was built.
        folder: where to build; None for a temporary folder.
        any_environment: go on where installed packages are not those of the lock file.
        tolerance: the largest absolute difference of numbers that counts as equivalent.

    Raises:
        store.Unreachable: when MLflow does not answer.
        StageError: when there is no such version, or it cannot be built here.
    """
    client = store.connect()
    recorded = read(client, name)
    if recorded.statement.changes:
        _refuse_unsigned(client, recorded)
    if folder:
        refuse_folder(folder)
    began = time.monotonic()
    with _folder(folder, keep, tell) as place:
        tree = CleanTree.at(_commit(recorded), recorded.statement.changes, place)
        changed = ", changes applied" if recorded.statement.changes else ""
        tell(f"{recorded.name}: commit {_commit(recorded)[:12]}{changed}, in {place}")
        other_packages = tree.other_packages()
        if other_packages and not any_environment:
            raise CleanTreeError(
                f"{len(other_packages)} packages are not those of {LOCK} at that commit:\n"
                + "\n".join(f"  {line}" for line in other_packages[:20])
                + f"\n`pip install -r {LOCK}` in that tree's version, or --any-environment to go on"
            )
        done = _build(tree, recorded, tolerance, tell)
    done.other_packages = other_packages
    done.seconds = time.monotonic() - began
    write(client, recorded, done)
    return done


def read(client: MlflowClient, reference: str) -> Recorded:
    """What MLflow has of the version NAME@VERSION.

    Raises:
        StageError: when there is no such version, or part of its evidence is missing or damaged.
    """
    version = evidence.find(client, *evidence.parse(reference))
    name = f"{version.name}@{version.version}"
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        paths = {
            file: _download(client, name, version.run_id, file, folder)
            for file in (evidence.PROVENANCE, evidence.STATEMENT)
        }
        identity = provenance.identity(paths[evidence.PROVENANCE])
        statement = Statement.read(paths[evidence.STATEMENT])
        if not version.tags.get("identity") == statement.identity == identity:
            raise StageError(
                f"the {evidence.PROVENANCE} of {name} is not the one that its tag and its statement "
                f"name; `tunetrail verify {name}` says what else does not hold"
            )
        document = json.loads(paths[evidence.PROVENANCE].read_text(encoding="utf-8"))
    return Recorded(
        version.name, int(version.version), version.run_id, identity, document, statement
    )


def _refuse_unsigned(client: MlflowClient, recorded: Recorded) -> None:
    """The commit is what git says it is; but recorded changes are code that comes from MLflow."""
    version = evidence.find(client, recorded.model, str(recorded.number))
    with review.read(client, version) as found:
        report = verify.check(client, found, Path())
    for finding in report.failed:
        if finding.check in ("signature", "files", "statement", "identity"):
            error = StageError(
                f"{recorded.name} was registered with uncommitted changes, which would be run here, "
                f"and its {finding.check} does not hold: {finding.why}"
            )
            error.exit_code = GATE
            raise error


def _download(client: MlflowClient, name: str, run_id: str, file: str, folder: str) -> Path:
    try:
        return Path(client.download_artifacts(run_id, file, folder))
    except Exception as error:  # what a store of artifacts raises depends on its kind
        raise StageError(
            f"{name} has no {file} in its run {run_id}, so nobody knows what it was made from; "
            "register the model anew with `tunetrail run`"
        ) from error


def _commit(recorded: Recorded) -> str:
    if commit := recorded.statement.commit:
        return commit
    raise StageError(
        f"{recorded.name} was registered outside of git, so its code is not recorded; "
        "commit, and register it anew"
    )


@contextlib.contextmanager
def _folder(wanted: Path | None, keep: bool, tell: Tell) -> Iterator[Path]:
    made = wanted or Path(tempfile.mkdtemp(prefix="tunetrail-reproduce-"))
    try:
        yield made.resolve()
    finally:
        if keep or wanted:
            tell(f"the tree is kept in {made}; {made / LOG} has what the stages said")
        else:
            shutil.rmtree(made, ignore_errors=True)


def _build(tree: CleanTree, recorded: Recorded, tolerance: float, tell: Tell) -> Reproduction:
    sections, environment = tree.read_params()
    done = Reproduction("identical", tolerance, machine=_facts(environment))
    if pinned := _champion(recorded):
        champion.hand_over(pinned, tree.root)
    lost = tree.bring(recorded.sources, dvc_storage.storage())
    if _inputs_differ(tree, recorded, sections, lost, done):
        return done
    with contextlib.chdir(tree.root):
        plan = dvc_dag.plan(_WRITES_PROVENANCE)
    kept = _set_aside(tree, recorded)
    for number, stage in enumerate(plan, 1):
        tell(f"[{number}/{len(plan)}] {stage.name}: {stage.desc}")
        began = time.monotonic()
        tree.run(stage.name)
        if stage.name in recorded.stages:
            differing = _compare(tree, recorded, stage.name, kept, done)
            same = "identical" if not differing else f"{', '.join(differing)} differs"
            tell(f"      {same}, {time.monotonic() - began:.1f} s")
        if done.answer == "different":
            tell("      what follows it is not built")
            return done
    if done.outputs:
        done.answer = "equivalent" if done.distance.within(tolerance) else "different"
    elif provenance.identity(tree.root / _PROVENANCE) != recorded.identity:
        done.answer, done.stage = "different", _WRITES_PROVENANCE
        done.causes += _circumstances(tree, recorded) or [
            "the outputs of all other stages are the same, the provenance is not"
        ]
    return done


def _champion(recorded: Recorded) -> str | None:
    """The identity of the version that this one was compared with, if there was one."""
    evaluated = recorded.stages.get("evaluate", {"params": {}})
    identity = evaluated["params"].get("evaluate", {}).get("champion")
    return identity if isinstance(identity, str) else None


def _facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """The facts of this machine, with the switches under which stages compute."""
    return {**machine.facts(), "switches": dict(environment)}


def _inputs_differ(
    tree: CleanTree,
    recorded: Recorded,
    sections: Mapping[str, Any],
    lost: list[str],
    done: Reproduction,
) -> bool:
    """Whether some stage would read something else than was recorded; then nothing need run."""
    for name, record in recorded.stages.items():
        here = {
            path: (tree.md5(path) if path in lost else md5)
            for path, md5 in record["inputs"].items()
        }
        params = {key: _section(key, values, sections) for key, values in record["params"].items()}
        causes = compare.inputs(record, {"inputs": here, "params": params})
        if causes:
            done.answer, done.stage, done.causes = "different", name, causes
            return True
    return False


def _section(
    key: str, recorded: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The section of params.yaml that a record means.  The record calls it as the stage's signature
    does, where it may have any name."""
    alike = (section for section in sections.values() if section.keys() == recorded.keys())
    return sections.get(key) or next(alike, {})


def _set_aside(tree: CleanTree, recorded: Recorded) -> dict[str, Path]:
    """Copies of the outputs that git holds, by path: numbers that DVC does not keep in its cache."""
    aside = tree.root / ASIDE
    kept: dict[str, Path] = {}
    for record in recorded.stages.values():
        for path, output in record["outputs"].items():
            place = tree.root / path
            if place.is_file() and hashes.sha256(place) == output["sha256"]:
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                kept[path] = Path(shutil.copyfile(place, aside / path))
    return kept


def _compare(
    tree: CleanTree, recorded: Recorded, name: str, kept: Mapping[str, Path], done: Reproduction
) -> list[str]:
    """Compare what a stage wrote. Returns the outputs that differ."""
    record = recorded.stages[name]
    differing = [
        path
        for path, output in record["outputs"].items()
        if not (tree.root / path).exists() or hashes.sha256(tree.root / path) != output["sha256"]
    ]
    if not differing:
        return []
    if done.stage is None:
        done.stage = name
        done.causes = _causes(tree, recorded, name, done)
    done.outputs += differing
    before = _originals(recorded, record["outputs"], differing, kept, tree.root / ASIDE)
    for path in differing:
        if path in before:
            compare.outputs(before[path], tree.root / path, path, done.distance)
        else:
            text = f"{path} as it was recorded is in no cache and no remote, so cannot be compared"
            done.distance.unequal.append(text)
    if done.distance.unequal:
        done.answer = "different"
    return differing


def _originals(
    recorded: Recorded,
    outputs: Mapping[str, Mapping[str, str]],
    wanted: list[str],
    kept: Mapping[str, Path],
    folder: Path,
) -> dict[str, Path]:
    """Outputs as they were recorded, by path: from git, from DVC's cache and remotes, or from what
    MLflow keeps with the version."""
    found = {path: kept[path] for path in wanted if path in kept}
    places = {folder / path: path for path in wanted if path not in kept}
    md5s = {place: outputs[path]["md5"] for place, path in places.items()}
    missing = dvc_storage.fetch(md5s, dvc_storage.storage()) if places else []
    found |= {path: place for place, path in places.items() if place not in missing}
    client = store.connect() if missing else None
    for place in missing:
        path = places[place]
        with contextlib.suppress(Exception):  # it is not there, as most outputs are not
            assert client is not None
            place.parent.mkdir(parents=True, exist_ok=True)
            got = Path(client.download_artifacts(recorded.run_id, place.name, str(place.parent)))
            if hashes.sha256(got) == outputs[path]["sha256"]:
                found[path] = got
    return found


def _causes(tree: CleanTree, recorded: Recorded, name: str, done: Reproduction) -> list[str]:
    """Why the first stage that differs may do so: it read the same, or nothing would have run."""
    record = json.loads((tree.root / _RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    read = compare.inputs(recorded.stages[name], record)
    causes = read or compare.facts(recorded.statement.machine, done.machine)
    return causes or ["same inputs, same machine: the stage does not give the same twice"]


def _circumstances(tree: CleanTree, recorded: Recorded) -> list[str]:
    """What stages chose otherwise here, though it changed no output."""
    return [
        f"{name}: {fact}"
        for name, record in recorded.stages.items()
        for fact in compare.circumstances(
            record, json.loads((tree.root / _RECORDS / f"{name}.json").read_text(encoding="utf-8"))
        )
    ]


def write(client: MlflowClient, recorded: Recorded, done: Reproduction) -> None:
    """Write the answer on the version: tags for the newest, an artifact of its run for all, each
    sealed with the key of whoever asked.

    Raises:
        CleanTreeError: when MLflow refuses.
    """
    entry = {
        "version": recorded.name,
        "answer": done.answer,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "by": git.author() or getpass.getuser(),
        "identity": recorded.identity,
        "commit": recorded.statement.commit,
        "changes_applied": bool(recorded.statement.changes),
        "first_stage_that_differs": done.stage,
        "outputs_that_differ": done.outputs,
        "causes": done.causes,
        "largest_weight_difference": vars(done.distance.weights),
        "largest_metric_difference": vars(done.distance.metrics),
        "unequal": done.distance.unequal,
        "tolerance": done.tolerance,
        "other_packages": done.other_packages,
        "machine": done.machine,
        "seconds": round(done.seconds, 1),
    }
    try:
        sealed = seal.sealed(review.PURPOSE, entry, signing.signing_key())
        attached.add(client, recorded.run_id, evidence.REPRODUCTIONS, review.PURPOSE, sealed)
        version = client.get_model_version(recorded.model, str(recorded.number))
        tags = {
            "reproduced": done.answer,
            "reproduced.at": entry["at"],
            "reproduced.by": entry["by"],
            "reproduced.identity": recorded.identity,
            "reproduced.commit": entry["commit"],
            "reproduced.machine": _machine(done.machine),
            "reproduced.environment": "other" if done.other_packages else "locked",
            "reproduced.count": str(len(review.reproductions(client, version))),
        }
        for key, value in tags.items():
            client.set_model_version_tag(recorded.model, str(recorded.number), key, value)
    except Exception as error:  # of any kind of store
        raise CleanTreeError(
            f"the answer is {done.answer}, but MLflow refuses to keep it: {store.brief(error)}; "
            "mend that, and run it again"
        ) from error


def _machine(facts: Mapping[str, Any]) -> str:
    """A machine in a line."""
    switches, libraries = facts["switches"], facts["libraries"]
    return (
        f"{facts['cpu']['model']}, {switches.get('ATEN_CPU_CAPABILITY', 'native')}, "
        f"{switches.get('OMP_NUM_THREADS', '?')} threads, python {facts['python']}, "
        f"torch {libraries.get('torch', '?')}"
    )
