"""The candidate in MLflow's model registry: one version for one content.

A version is known by the identity of its provenance.  Everything that it points to is laid out,
signed and uploaded first, and the version is made in one request after that, so that a process killed
at any moment leaves either the version or a run that the next attempt finishes or clears away.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tasks.lineage import courier, evidence, hashes, provenance, signing, store, submission
from tasks.lineage.stage import FAULT, STATE, StageError
from tasks.lineage.statement import StageRun, Statement
from tasks.lineage.submission import Candidate

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER = "challenger"
"""The alias of the candidate that the pipeline made last."""

UPLOAD_SECONDS = 300
"""How long one answer of MLflow may take while a model is uploaded."""


class RegistryError(StageError):
    """MLflow answers, and refuses."""

    exit_code = FAULT


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
    submission.check_files(candidate)
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


def _ensure(client: MlflowClient, candidate: Candidate) -> Version:
    identity = provenance.identity(candidate.provenance)
    number = _registered(client, candidate.model, identity)
    created = number is None
    if number is None:
        where = _work_tree_name()
        run_id, model_uri = _uploaded(client, identity, where) or _upload(
            client, candidate, identity, where
        )
        number = _create(client, candidate, identity, run_id, model_uri)
    _link_runs(client, candidate, number)
    client.set_registered_model_alias(candidate.model, CHALLENGER, str(number))
    return Version(candidate.model, number, created)


def _link_runs(client: MlflowClient, candidate: Candidate, number: int) -> None:
    """Name the run of each stage, those that were delivered late too; what is named stays."""
    named = client.get_model_version(candidate.model, str(number)).tags
    for stage, run in stage_runs(client, candidate.facts).items():
        if f"run:{stage}" not in named:
            client.set_model_version_tag(candidate.model, str(number), f"run:{stage}", run.run_id)


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
    said = _uploaded_statement(client, run_id)
    about = evidence.tags(candidate.facts, candidate.decided, said)
    about |= {f"run:{stage}": run for stage, run in said.runs.items()}
    about |= evidence.descriptors(client.get_run(run_id).data.tags)
    made = client.create_model_version(
        candidate.model,
        model_uri,
        run_id=run_id,
        tags=about,
        description=evidence.describe(candidate.facts, candidate.decided, candidate.measured),
        model_id=model_uri.removeprefix("models:/"),  # a server refuses the source without it
    )
    # Another clone that registers the same content at this moment holds another lock.
    number = int(made.version)
    first = _registered(client, candidate.model, identity) or number
    if first != number:
        client.delete_model_version(candidate.model, str(number))
    return first


def _uploaded_statement(client: MlflowClient, run_id: str) -> Statement:
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        return Statement.read(Path(client.download_artifacts(run_id, evidence.STATEMENT, folder)))


def _work_tree_name() -> str:
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
    """A run with the signed version: model, evidence, and all that a reviewer wants to see."""
    requirements = submission.requirements(candidate)
    key = signing.signing_key()
    work_tree = submission.work_tree(candidate)
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
    runs = stage_runs(client, candidate.facts)
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        signed = submission.prepare(
            candidate, requirements, work_tree, runs, run_id, key, Path(folder)
        )
        inputs = [_input(path, digest) for path, digest in signed.datasets.items()]
        client.log_inputs(run_id, datasets=inputs)
        for metric, number in evidence.metrics(candidate.decided, candidate.measured).items():
            client.log_metric(run_id, metric, number)
        for name, path in signed.files.items():
            if not name.startswith(f"{evidence.MODEL}/"):
                client.log_artifact(run_id, str(path), evidence.folder_of(name) or None)
        model_uri = _upload_model(client, experiment, run_id, Path(folder) / evidence.MODEL)
    client.set_terminated(run_id)
    for tag, value in (signed.tags | {"model": model_uri, "uploaded": "true"}).items():
        client.set_tag(run_id, tag, value)
    return run_id, model_uri


def _input(path: str, digest: str) -> Any:
    """A dataset as the candidate's run shows it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name = Path(path).stem
    source = json.dumps({"uri": path})
    return DatasetInput(
        Dataset(name, digest[:_DIGEST_CHARS], "local", source),
        [
            InputTag("mlflow.data.context", _CONTEXTS.get(name.partition("_")[0], "training")),
            InputTag(evidence.DATASET_TAG, digest),
        ],
    )


_CONTEXTS = {"validation": "validation", "test": "test", "hard": "test", "regression": "test"}
_DIGEST_CHARS = 36
"""As many as MLflow takes; the whole sha256 stands in a tag of the input."""


def _upload_model(client: MlflowClient, experiment: str, run_id: str, folder: Path) -> str:
    """Upload a saved model. Returns its address."""
    from mlflow.entities import LoggedModelOutput

    model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    uri: str = model.model_uri
    return uri


def _clear_away(client: MlflowClient, where: str) -> None:
    """Delete what uploads from this work tree left when killed; our lock says that none runs."""
    for run in _search(client, f"tags.work_tree = '{where}' and tags.uploaded = 'false'"):
        for output in run.outputs.model_outputs if run.outputs else []:
            client.delete_logged_model(output.model_id)
        client.delete_run(run.info.run_id)


def stage_runs(client: MlflowClient, facts: Mapping[str, Any]) -> dict[str, StageRun]:
    """For each stage of a provenance the run that made what its record names, also when DVC restored
    it since."""
    found: dict[str, StageRun] = {}
    for stage in facts["stages"]:
        for path, digest in stage["outputs"].items():
            runs = _search(client, f"tags.`out:{path}` = '{digest['md5']}'", status="FINISHED")
            if runs:
                info = runs[0].info
                found[stage["stage"]] = StageRun(info.run_id, info.start_time, info.end_time)
                break
    return found


def _search(client: MlflowClient, filter_string: str, status: str | None = None) -> list[Any]:
    """Runs of every experiment, newest first; the pipeline may have had another name before."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    if status:
        filter_string += f" and attributes.status = '{status}'"
    return list(client.search_runs(experiments, filter_string, order_by=["start_time DESC"]))
