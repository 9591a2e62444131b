"""The candidate in MLflow's model registry: one version for one content.

A version is known by the identity of its provenance.  It is made in one request, after everything
that it points to is uploaded, so that a process killed at any moment leaves either the version or a
run that the next attempt finishes or clears away.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks.lineage import courier, git, hashes, provenance, store
from tasks.lineage.stage import FAULT, STATE, StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER = "challenger"
"""The alias of the candidate that the pipeline made last."""

UPLOAD_SECONDS = 300
"""How long one answer of MLflow may take while a model is uploaded."""

_NEEDED = ("mlflow", "pandas", "transformers", "tokenizers", "jinja2")
_NEEDED_FOR_ONNX = ("numpy", "onnxruntime", "onnxruntime-genai")
_NEEDED_FOR_TORCH = ("torch", "safetensors", "accelerate")


class RegistryError(StageError):
    """MLflow answers, and refuses."""

    exit_code = FAULT


@dataclass(frozen=True)
class Candidate:
    """What is registered, and what speaks for it."""

    name: str
    """Of the registered model, without "-candidates"."""
    provenance: Path
    environment_lock: Path
    merged: Path
    onnx: Path
    data: Path
    """As `format` wrote it: the chat contract, and a row that shows how the model is asked."""
    report: Path
    verdict: Path
    metrics: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `provenance`."""
        return _read_json(self.provenance)

    @property
    def model(self) -> str:
        return f"{self.name}-candidates"

    @property
    def served(self) -> Path:
        """The folder that answers: ONNX, unless the model is not exported."""
        return self.onnx if any(self.onnx.iterdir()) else self.merged

    @property
    def contract(self) -> Path:
        return self.data / "contract.json"


@dataclass(frozen=True)
class Version:
    """A version in the registry."""

    model: str
    number: int
    created: bool
    """False when it was there already."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.number}"


def ensure_version(candidate: Candidate) -> Version:
    """The version with this candidate's identity: found, or made.

    Raises:
        store.Unreachable: when MLflow does not answer, or ceases to.
        RegistryError: when MLflow refuses.
        StageError: when the files are not those that the provenance describes.
    """
    _check_files(candidate)
    client = store.connect()
    try:
        (STATE / "locks").mkdir(parents=True, exist_ok=True)
        with (
            FileLock(STATE / "locks" / "registry.lock"),
            store.patience(UPLOAD_SECONDS, retries=3),
        ):
            return _ensure(client, candidate)
    except StageError:
        raise
    except Exception as error:
        store.connect()  # whether it went away, or refuses
        raise RegistryError(
            f"MLflow refuses to register {candidate.model}: {store.brief(error)}; "
            "mend that, then run `tunetrail sync`"
        ) from error


def sync(candidate: Candidate | None) -> tuple[Version | None, list[str]]:
    """Deliver the runs that wait, and register the candidate if its version is missing.

    Returns:
        The version (None without a candidate), and what could not be delivered, a line each.

    Raises:
        As `ensure_version`.
    """
    problems = deliver_runs()
    return (ensure_version(candidate) if candidate else None), problems


def deliver_runs() -> list[str]:
    """Deliver the runs that wait in the spool. Returns what could not be, a line each."""
    return courier.Courier(STATE / "spool").round(courier.LOCK_SECONDS)


def _check_files(candidate: Candidate) -> None:
    for name in ("merged", "onnx"):
        folder: Path = getattr(candidate, name)
        if hashes.manifest(folder) != candidate.facts["files"][name]:
            raise StageError(
                f"{folder} is not what {candidate.provenance.name} describes; "
                "run `dvc checkout`, or `dvc repro` to make both anew"
            )


def _ensure(client: MlflowClient, candidate: Candidate) -> Version:
    identity = provenance.identity(candidate.provenance)
    number = _registered(client, candidate.model, identity)
    created = number is None
    if number is None:
        where = _work_tree()
        run_id, model_uri = _uploaded(client, identity, where) or _upload(
            client, candidate, identity, where
        )
        number = _create(client, candidate, identity, run_id, model_uri)
    for key, value in _runs(client, candidate).items():  # those that were delivered late, too
        client.set_model_version_tag(candidate.model, str(number), key, value)
    client.set_registered_model_alias(candidate.model, CHALLENGER, str(number))
    return Version(candidate.model, number, created)


def _registered(client: MlflowClient, model: str, identity: str) -> int | None:
    """The first version with this identity."""
    versions = client.search_model_versions(f"name = '{model}' and tags.identity = '{identity}'")
    ready = [int(version.version) for version in versions if version.status == "READY"]
    return min(ready, default=None)


def _create(
    client: MlflowClient, candidate: Candidate, identity: str, run_id: str, model_uri: str
) -> int:
    from mlflow import MlflowException

    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(
            candidate.model,
            description="What the pipeline made. Reviewers promote a version by copying it to "
            f"`{candidate.name}`, once its evidence holds.",
        )
    made = client.create_model_version(
        candidate.model,
        model_uri,
        run_id=run_id,
        tags=_tags(candidate, identity) | _runs(client, candidate),
        description=describe(candidate),
        model_id=model_uri.removeprefix("models:/"),  # a server refuses the source without it
    )
    # Another clone that registers the same content at this moment holds another lock.
    number = int(made.version)
    first = _registered(client, candidate.model, identity) or number
    if first != number:
        client.delete_model_version(candidate.model, str(number))
    return first


def _work_tree() -> str:
    """A name of this work tree: what it has begun, under our lock, nobody else finishes."""
    return hashes.sha256_json([platform.node(), str(Path.cwd())])


def _uploaded(client: MlflowClient, identity: str, where: str) -> tuple[str, str] | None:
    """Run and model of an upload from here that was completed, while the version was not made."""
    done = f"tags.work_tree = '{where}' and tags.uploaded = 'true' and tags.identity = '{identity}'"
    for run in _search(client, done):
        return run.info.run_id, run.data.tags["model"]
    return None


def _upload(
    client: MlflowClient, candidate: Candidate, identity: str, where: str
) -> tuple[str, str]:
    """A run with the model and all that a reviewer wants to see beside it."""
    import mlflow

    needed = requirements(candidate)
    _clear_away(client, where)
    experiment = courier.experiment(client, candidate.name)
    run = client.create_run(
        experiment,
        run_name=f"candidate-{identity[:8]}",
        tags={
            "mlflow.user": getpass.getuser(),
            "identity": identity,
            "work_tree": where,
            "uploaded": "false",
        },
    )
    run_id: str = run.info.run_id
    with mlflow.start_run(run_id=run_id):  # by id: MLFLOW_RUN_ID may name another
        model_uri = _log_model(candidate, needed)
    for folder, path in (("report", candidate.report), ("merged", candidate.merged)):
        client.log_artifacts(run_id, str(path), folder)
    with _named("provenance.json", candidate.provenance) as path:
        client.log_artifact(run_id, str(path))
    for path in (candidate.verdict, candidate.metrics, candidate.contract):
        client.log_artifact(run_id, str(path))
    for metric, estimate in _measured(candidate):
        client.log_metric(run_id, metric, estimate["value"])
    client.set_tag(run_id, "model", model_uri)
    client.set_tag(run_id, "uploaded", "true")
    return run_id, model_uri


def _clear_away(client: MlflowClient, where: str) -> None:
    """Delete what uploads from this work tree left when killed; our lock says that none runs."""
    for run in _search(client, f"tags.work_tree = '{where}' and tags.uploaded = 'false'"):
        for output in run.outputs.model_outputs if run.outputs else []:
            client.delete_logged_model(output.model_id)
        client.delete_run(run.info.run_id)


def _log_model(candidate: Candidate, needed: list[str]) -> str:
    import mlflow
    import pandas as pd

    from tasks.lineage import served

    system, user = _turns(json.loads(_first_line(candidate.data / "train.jsonl"))["messages"])
    question = pd.DataFrame({"message": [user]})
    settings = {
        "system": system,
        "max_new_tokens": _params(candidate, "evaluate")["max_new_tokens"],
    }
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        path = Path(folder) / "settings.json"
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
        artifacts = {
            "model": str(candidate.served),
            "contract": str(candidate.contract),
            "settings": str(path),
        }
        try:
            answer = served.answer(artifacts, question)
        except Exception as error:
            raise StageError(
                f"{candidate.served} does not answer {user!r} as it would be served: "
                f"{store.brief(error)}; run `dvc repro --force merge`, then register again"
            ) from error
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=served.__file__,
            artifacts=artifacts,
            signature=mlflow.models.infer_signature(question, answer),
            input_example=question,
            pip_requirements=needed,
        )
    uri: str = info.model_uri
    return uri


def requirements(candidate: Candidate) -> list[str]:
    """What serving needs, each with the version that the model was made with.

    Raises:
        StageError: when the lock file lacks one.
    """
    lines = candidate.environment_lock.read_text(encoding="utf-8").splitlines()
    pinned: dict[str, str] = {
        canonicalize_name(Requirement(line).name): line
        for line in map(str.strip, lines)
        if line and not line.startswith("#")
    }
    onnx = candidate.served == candidate.onnx
    needed = sorted((*_NEEDED, *(_NEEDED_FOR_ONNX if onnx else _NEEDED_FOR_TORCH)))
    if missing := [name for name in needed if name not in pinned]:
        raise StageError(
            f"{candidate.environment_lock} does not pin {', '.join(missing)}, which serving needs; "
            "add the installed version"
        )
    return [pinned[name] for name in needed]


def _tags(candidate: Candidate, identity: str) -> dict[str, str]:
    verdict = _read_json(candidate.verdict)
    facts = candidate.facts
    tags = {
        "identity": identity,
        "verdict": verdict["verdict"],
        "candidate": verdict["candidate"],
        "base": _base(facts["base"]),
        "params": facts["params_sha256"],
        "environment": facts["environment_sha256"],
        "chat_contract": facts["chat_contract_sha256"],
        "author": git.author() or getpass.getuser(),
    }
    for gate in verdict["gates"]:
        outcome = "pass" if gate["passed"] else "fail"
        tags[f"gate:{gate['split']}/{gate['metric']}"] = f"{outcome}: {gate['why']}"
    for path, digest in _data(facts).items():
        tags[f"data:{path}"] = digest
    if commit := git.commit():
        tags |= {"git.commit": commit, "git.dirty": str(git.dirty()).lower()}
    return tags


def _base(base: Mapping[str, Any]) -> str:
    pinned = base["pinned"]
    if base["source"] == "hub":
        return f"{pinned['repo']}@{pinned['revision']}"
    digest = hashes.sha256_json(base["outputs"])
    return f"{base['source']}:{digest}"


def _data(facts: Mapping[str, Any]) -> dict[str, str]:
    """DVC's hash of everything that a stage read and none made, code and packages aside."""
    made = {path for stage in facts["stages"] for path in stage["outputs"]}
    return {
        path: digest
        for stage in facts["stages"]
        for path, digest in stage["inputs"].items()
        if path not in made and not path.startswith("tasks/") and not path.endswith(".lock")
    }


def _runs(client: MlflowClient, candidate: Candidate) -> dict[str, str]:
    """For each stage the run that made what its record names, also when DVC restored it since."""
    found: dict[str, str] = {}
    for stage in candidate.facts["stages"]:
        for path, digest in stage["outputs"].items():
            runs = _search(client, f"tags.`out:{path}` = '{digest['md5']}'", status="FINISHED")
            if runs:
                found[f"run:{stage['stage']}"] = runs[0].info.run_id
                break
    return found


def _search(client: MlflowClient, filter_string: str, status: str | None = None) -> list[Any]:
    """Runs of every experiment, newest first; the pipeline may have had another name before."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    if status:
        filter_string += f" and attributes.status = '{status}'"
    return list(client.search_runs(experiments, filter_string, order_by=["start_time DESC"]))


def describe(candidate: Candidate) -> str:
    """The version in Markdown: verdict, and a row a metric with its interval."""
    verdict = _read_json(candidate.verdict)
    measured = _read_json(candidate.metrics)
    final = verdict["candidate"]
    gates = {(gate["split"], gate["metric"]): gate for gate in verdict["gates"]}
    lines = [
        f"**{verdict['verdict']}**: {final}, on {_base(candidate.facts['base'])}",
        "",
        f"| split | metric | {final} | base | gate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, metrics in measured[final].items():
        for metric, estimate in metrics.items():
            gate = gates.get((split, metric))
            before = measured.get("base", {}).get(split, {}).get(metric)
            lines.append(
                f"| {split} | {metric} | {_interval(estimate)} | {_interval(before)} "
                f"| {('pass' if gate['passed'] else 'fail') + ': ' + gate['why'] if gate else ''} |"
            )
    return "\n".join(lines)


def _interval(estimate: Mapping[str, float | None] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    text = f"{estimate['value']:.4g}"
    if estimate.get("low") is not None:
        text += f" ({estimate['low']:.4g} to {estimate['high']:.4g})"
    return text


def _measured(candidate: Candidate) -> Iterator[tuple[str, Mapping[str, float]]]:
    final = _read_json(candidate.verdict)["candidate"]
    for split, metrics in _read_json(candidate.metrics)[final].items():
        for metric, estimate in metrics.items():
            if estimate["value"] is not None:
                yield f"{split}/{metric}", estimate


def _params(candidate: Candidate, section: str) -> Mapping[str, Any]:
    stages = candidate.facts["stages"]
    values: Mapping[str, Any] = next(
        stage["params"][section] for stage in stages if section in stage["params"]
    )
    return values


def _turns(messages: list[dict[str, str]]) -> tuple[str | None, str]:
    """The system turn, if there is one, and a question."""
    system = next((turn["content"] for turn in messages if turn["role"] == "system"), None)
    return system, next(turn["content"] for turn in messages if turn["role"] == "user")


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline()


@contextlib.contextmanager
def _named(name: str, path: Path) -> Iterator[Path]:
    """A copy under another name: an output has a partial name until its stage is done."""
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        yield Path(shutil.copyfile(path, Path(folder) / name))


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
