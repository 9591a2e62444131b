"""What lies with a version in MLflow: the names of its files, its tags, and reading it back.

The run that registered a version holds everything but the model as it is served, which MLflow keeps
in a place of its own.  Here both are one set of files, the latter below `model/`:

    provenance.json  statement.json  signature.json  bom.cdx.json
    verdict.json  evaluate.metrics.json  contract.json  requirements.lock  params.yaml  dvc.yaml
    sft/  dpo/  merged/  report/  model/

dvc.lock is not among them: DVC writes it after `register` has run.  All that it would tell, the hash
of every input and output, stands in the provenance.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tasks.lineage import hashes, statement
from tasks.lineage.stage import StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROVENANCE = statement.IDENTITY
STATEMENT = "statement.json"
SIGNATURE = "signature.json"
BOM = "bom.cdx.json"
VERDICT = "verdict.json"
METRICS = "evaluate.metrics.json"
CONTRACT = "contract.json"
LOCK = "requirements.lock"
PARAMS = "params.yaml"
WIRING = "dvc.yaml"
REPORT = "report"
MODEL = "model"
SERVED = "artifacts/{}"
"""Where below MODEL the folder lies that answers: `onnx`, or `merged`."""

REPRODUCTIONS = "reproductions"
"""The folder of the answers of `tunetrail reproduce`."""

OPINIONS = "opinions"
"""The folder of what people and a language model said of the version, as `opinions` keeps it."""

DRIFT = "drift"
"""The folder of the drift report for which the version was made."""

_ATTACHED = (f"{REPRODUCTIONS}/", f"{OPINIONS}/", f"{DRIFT}/")
"""What comes after the signature, so that it is not among the files of the version."""

DATASET_TAG = "tunetrail.sha256"
"""Of a run's dataset input; MLflow's own digest has too few characters for a sha256."""

_DESCRIPTORS = ("statement", "signature", "signer")
"""Tags of the run that registered a version, and of the version."""


class NotFound(StageError):
    """There is no such version."""


@dataclass(frozen=True)
class Evidence:
    """A version as MLflow has it; nothing of it is trusted yet."""

    model: str
    number: int
    tags: Mapping[str, str]
    description: str
    run: Any
    """The MLflow run that registered it; None when it is gone for good."""
    files: Mapping[str, Path]
    """Every file of the version, by its path there."""

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of every file. What is no plain file has the hash of what it is, which no one has signed."""
        with ThreadPoolExecutor() as pool:  # hashing frees the interpreter's lock
            return dict(zip(self.files, pool.map(_sha256, self.files.values()), strict=True))

    def read_json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.files[name].read_text(encoding="utf-8"))
        return content

    def below(self, folder: str) -> dict[str, str]:
        """sha256 of the files in a folder, by path relative to it."""
        prefix = f"{folder}/"
        return {
            name.removeprefix(prefix): digest
            for name, digest in self.sha256.items()
            if name.startswith(prefix)
        }

    @property
    def served(self) -> str:
        """The folder that answers: ONNX, unless the model was not exported."""
        onnx = f"{MODEL}/{SERVED.format('onnx')}"
        return onnx if self.below(onnx) else f"{MODEL}/{SERVED.format('merged')}"


def parse(reference: str) -> tuple[str, str]:
    """NAME@VERSION as name and version, which is a number or an alias.

    Raises:
        NotFound: when it has another form.
    """
    name, separator, version = reference.rpartition("@")
    if not (separator and name and version):
        raise NotFound(
            f"{reference!r} names no version; write NAME@VERSION, as in shipments-candidates@1 "
            "or shipments-candidates@challenger"
        )
    return name, version


def find(client: MlflowClient, name: str, version: str) -> Any:
    """MLflow's version by number or alias.

    Raises:
        NotFound: when there is none.
    """
    from mlflow import MlflowException

    try:
        if version.isascii() and version.isdigit():
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, version)
    except MlflowException as error:
        missing = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        if error.error_code not in missing:
            raise
    raise NotFound(f"MLflow has no {name}@{version}; known: {_known(client)}")


def collect(client: MlflowClient, version: Any, folder: Path) -> Evidence:
    """All that lies with a version: read in place on this machine, downloaded into `folder` else."""
    from mlflow import MlflowException

    run = _run(client, version.run_id)
    files = _files(run.info.artifact_uri, folder / "run") if run else {}
    files = {name: path for name, path in files.items() if not name.startswith(_ATTACHED)}
    try:
        model = client.get_model_version_download_uri(version.name, str(version.version))
        served = _files(model, folder / MODEL)
    except MlflowException:  # the logged model was deleted: its files are missing then
        served = {}
    return Evidence(
        model=version.name,
        number=int(version.version),
        tags=dict(version.tags),
        description=version.description or "",
        run=run,
        files={**files, **{f"{MODEL}/{name}": path for name, path in served.items()}},
    )


def _run(client: MlflowClient, run_id: str) -> Any:
    from mlflow import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def tags(
    facts: Mapping[str, Any], verdict: Mapping[str, Any], said: statement.Statement
) -> dict[str, str]:
    """What a version's tags must say, from its documents alone."""
    told = {
        "identity": said.identity,
        "verdict": verdict["verdict"],
        "candidate": verdict["candidate"],
        "base": base_name(facts["base"]),
        "params": facts["params_sha256"],
        "environment": facts["environment_sha256"],
        "chat_contract": facts["chat_contract_sha256"],
        "author": said.author,
    }
    for gate in verdict["gates"]:
        told[f"gate:{_place(gate)}/{gate['metric']}"] = _outcome(gate)
    for path, digest in statement.sources(facts).items():
        if not path.startswith("tasks/") and not path.endswith(".lock"):
            told[f"data:{path}"] = digest
    if said.commit:
        told |= {"git.commit": said.commit, "git.dirty": str(bool(said.changes)).lower()}
    return told


def base_name(base: Mapping[str, Any]) -> str:
    """The base model with its revision, or its hash where no hub names one."""
    pinned = base["pinned"]
    if base["source"] == "hub":
        return f"{pinned['repo']}@{pinned['revision']}"
    return f"{base['source']}:{hashes.sha256_json(base['outputs'])}"


def describe(
    facts: Mapping[str, Any], verdict: Mapping[str, Any], measured: Mapping[str, Any]
) -> str:
    """The version in Markdown: verdict, a row a metric with its interval, what it is compared with."""
    final = verdict["candidate"]
    by_candidate = measured["candidates"]
    gates = {
        (gate["split"], gate["metric"]): gate
        for gate in verdict["gates"]
        if gate["gate"] == "metric"
    }
    lines = [
        f"**{verdict['verdict']}**: {final}, on {base_name(facts['base'])}",
        "",
        f"| split | metric | {final} | base | gate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, metrics in by_candidate[final].items():
        for metric, estimate in metrics.items():
            gate = gates.get((split, metric))
            before = by_candidate.get("base", {}).get(split, {}).get(metric)
            lines.append(
                f"| {split} | {metric} | {_interval(estimate)} | {_interval(before)} "
                f"| {_outcome(gate) if gate else ''} |"
            )
    lines += [
        f"\n{gate['gate']} gate, {_outcome(gate)}"
        for gate in verdict["gates"]
        if gate["gate"] != "metric"
    ]
    return "\n".join(lines)


def metrics(verdict: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, float]:
    """The final candidate's numbers, as the run shows them."""
    return {
        f"{split}/{metric}": estimate["value"]
        for split, found in measured["candidates"][verdict["candidate"]].items()
        for metric, estimate in found.items()
        if estimate["value"] is not None
    }


def _place(gate: Mapping[str, Any]) -> str:
    """Where a gate looks: at a split, or at what the candidate is compared with."""
    return str(gate["split"] if gate["gate"] == "metric" else gate["gate"])


def _outcome(gate: Mapping[str, Any]) -> str:
    return f"{'pass' if gate['passed'] else 'fail'}: {gate['why']}"


def descriptors(of: Mapping[str, str]) -> dict[str, str]:
    """Among tags, those that name a statement and its signature."""
    return {name: of[name] for name in _DESCRIPTORS if name in of}


def _interval(estimate: Mapping[str, float | None] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    text = f"{estimate['value']:.4g}"
    if estimate.get("low") is not None:
        text += f" ({estimate['low']:.4g} to {estimate['high']:.4g})"
    return text


def _known(client: MlflowClient) -> str:
    found = [
        f"{version.name}@{version.version}"
        for version in client.search_model_versions(max_results=20)
    ]
    return ", ".join(found) or "no version at all; `tunetrail run` makes one"


def _files(uri: str, folder: Path) -> dict[str, Path]:
    """Every file below an address in MLflow's store, by relative POSIX path."""
    local = _local(uri)
    if local is None:
        import mlflow

        folder.mkdir(parents=True)
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    return {
        path.relative_to(local).as_posix(): path
        for path in sorted(_walk(local))
        if not _is_note_of_mlflow(path, local)
    }


def _local(uri: str) -> Path | None:
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(uri) if not parsed.scheme else None


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder; links are told of, not followed."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _is_note_of_mlflow(path: Path, root: Path) -> bool:
    """Whether this is the name and number that MLflow notes in a model that it loads in place."""
    return (
        path == root / "registered_model_meta"
        and stat.S_ISREG(path.lstat().st_mode)
        and path.lstat().st_size < 1000
        and re.fullmatch(rb"model_name: [\w.'-]+\nmodel_version: '?\d+'?\n", path.read_bytes())
        is not None
    )


def _sha256(path: Path) -> str:
    if stat.S_ISREG(path.lstat().st_mode):
        return hashes.file_hash(path, "sha256")
    return hashlib.sha256(f"no plain file: {path.name}".encode()).hexdigest()


def folder_of(name: str) -> str:
    """The folder in which a file of the version lies; empty at the top."""
    parent = PurePosixPath(name).parent.as_posix()
    return "" if parent == "." else parent
