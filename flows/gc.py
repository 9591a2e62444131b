"""Make room: remove what nothing needs any more, from DVC's cache and from MLflow.

`dvc gc` knows what the work tree and git refer to, `mlflow gc` knows which runs were deleted; neither
knows what a registered version was made from and can be compared with.  Here both are asked, and
what the provenance of any version of any model names is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import dvc_storage
from tasks.lineage import evidence, store
from tasks.lineage.stage import FAULT, MISUSE, StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Refused(StageError):
    """What is needed cannot be told from what is not; nothing was removed."""

    exit_code = FAULT


@dataclass(frozen=True)
class Version:
    """What a registered version needs."""

    name: str
    run_ids: frozenset[str]
    logged_model: str | None
    provenance: dict[str, Any]
    commit: str | None

    @property
    def outputs(self) -> dict[str, str]:
        """DVC's md5 of every output of every stage, by path."""
        return {
            path: output["md5"]
            for record in self.provenance["stages"]
            for path, output in record["outputs"].items()
        }

    @property
    def inputs(self) -> dict[str, str]:
        """DVC's md5 of what the stages read and none made, by path."""
        return {
            path: md5
            for record in self.provenance["stages"]
            for path, md5 in record["inputs"].items()
            if path not in self.outputs
        }


@dataclass
class Waste:
    """What nothing needs."""

    objects: list[Path]
    """Of DVC's cache."""
    size: int
    """Of these, in bytes."""
    runs: dict[str, str] = field(default_factory=dict)
    """Deleted MLflow runs, name by id."""
    by_hand: str | None = None
    """The command that removes them where MLflow's database is; None when it is here."""

    def lines(self) -> Iterator[str]:
        for path in self.objects:
            yield f"  {path}"
        for run_id, name in self.runs.items():
            yield f"  deleted run {run_id} ({name})"
        yield (
            f"{len(self.objects)} objects of the cache, {self.size / 2**20:.1f} MiB; "
            f"{len(self.runs)} deleted runs"
        )


def find() -> Waste:
    """What could go, without removing it.

    Raises:
        store.Unreachable: when MLflow does not answer: it alone knows the versions.
        Refused: when it cannot be told what a version needs.
    """
    client = store.connect()
    where = dvc_storage.storage()
    if not where.cache.resolve().is_relative_to(Path.cwd()):
        error = Refused(
            f"the cache {where.cache} lies outside of this project, so others may use it; "
            "run `dvc gc --projects` with all of them"
        )
        error.exit_code = MISUSE
        raise error
    versions = list(registered(client))
    keep = {md5 for version in versions for md5 in _needed(version, where)}
    unused = dvc_storage.unused(keep)
    waste = Waste(unused, sum(path.stat().st_size for path in unused))
    waste.runs = _deleted_runs(client, versions)
    waste.by_hand = _by_hand(waste.runs)
    return waste


def remove(waste: Waste) -> None:
    """Remove it.

    Raises:
        Refused: when another dvc is at work, or MLflow refuses.
    """
    dvc_storage.remove_objects(waste.objects)
    if waste.runs and waste.by_hand is None:
        _mlflow_gc(waste.runs)


def registered(client: MlflowClient) -> Iterator[Version]:
    """Every version of every model that this project's `register` made, also where it was copied to.

    Raises:
        Refused: when the provenance of one cannot be read.
    """
    for found in _all_versions(client):
        if "identity" not in found.tags:
            continue
        name = f"{found.name}@{found.version}"
        runs = {value for key, value in found.tags.items() if key.startswith("run:")}
        with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
            try:
                path = client.download_artifacts(found.run_id, evidence.PROVENANCE, folder)
                document = json.loads(Path(path).read_text(encoding="utf-8"))
            except Exception as error:  # what a store of artifacts raises depends on its kind
                raise Refused(
                    f"the provenance of {name} cannot be read ({store.brief(error)}), so nobody "
                    f"knows what it needs; bring run {found.run_id} back, or delete the version"
                ) from error
        yield Version(
            name=name,
            run_ids=frozenset({found.run_id, *runs}),
            logged_model=getattr(found, "model_id", None),
            provenance=document,
            commit=found.tags.get("git.commit"),
        )


def _all_versions(client: MlflowClient) -> Iterator[Any]:
    for found in store.every(client.search_model_versions):
        # what a search gives lacks some tags of a copy
        yield client.get_model_version(found.name, found.version)


def _needed(version: Version, where: dvc_storage.Storage) -> Iterator[str]:
    """The md5 of every object that a version needs, those that make up its folders included."""
    for path, md5 in {**version.inputs, **version.outputs}.items():
        yield md5
        if not md5.endswith(".dir"):
            continue
        listed = dvc_storage.listing(md5, where)
        if listed is not None:
            yield from listed
        elif not _in_git(version.commit, path):
            raise Refused(
                f"{version.name} needs {path} ({md5}), and the list of its files is in no cache and "
                "no remote, so they cannot be told from what may go; `git fetch` where git keeps it, "
                "`dvc push` it from where the version was registered, or delete the version"
            )


def _in_git(commit: str | None, path: str) -> bool:
    """Whether git keeps a path, so that the cache need not."""
    if commit is None:
        return False
    asked = subprocess.run(
        ["git", "cat-file", "-e", f"{commit}:./{path}"], capture_output=True, check=False
    )
    return asked.returncode == 0


def _deleted_runs(client: MlflowClient, versions: list[Version]) -> dict[str, str]:
    """The deleted runs that no version names.

    Raises:
        Refused: when something that a version needs was deleted in a way that `mlflow gc`, which
            takes every deleted experiment and model with it, would make final.
    """
    from mlflow.entities import ViewType

    experiments = {
        experiment.experiment_id: experiment
        for experiment in client.search_experiments(view_type=ViewType.ALL)
    }
    needed = {run_id: version for version in versions for run_id in version.run_ids}
    deleted: dict[str, str] = {}
    for run in _deleted(client, list(experiments)):
        version = needed.get(run.info.run_id)
        if version is None:
            deleted[run.info.run_id] = run.info.run_name or ""
        elif experiments[run.info.experiment_id].lifecycle_stage == "deleted":
            identifier = run.info.experiment_id
            raise Refused(
                f"{version.name} needs run {run.info.run_id} of a deleted experiment; "
                f"`mlflow experiments restore --experiment-id {identifier}` first"
            )
    for version in versions:
        _check_model(client, version)
    return deleted


def _deleted(client: MlflowClient, experiments: list[str]) -> Iterator[Any]:
    from mlflow.entities import ViewType

    deleted = {"experiment_ids": experiments, "run_view_type": ViewType.DELETED_ONLY}
    return store.every(client.search_runs, **deleted)


def _check_model(client: MlflowClient, version: Version) -> None:
    from mlflow import MlflowException

    if not version.logged_model:
        return
    try:
        client.get_logged_model(version.logged_model)
    except MlflowException as error:
        raise Refused(
            f"the model {version.logged_model} of {version.name} was deleted, and `mlflow gc` would "
            "make that final; bring it back, or delete the version"
        ) from error


def _by_hand(runs: dict[str, str]) -> str | None:
    import mlflow

    if mlflow.get_tracking_uri().startswith(("http://", "https://")) and runs:
        return f"mlflow gc --run-ids {','.join(runs)}"
    return None


def _mlflow_gc(runs: dict[str, str]) -> None:
    import mlflow

    uri = mlflow.get_tracking_uri()
    options = {"--backend-store-uri": uri, "--tracking-uri": uri, "--run-ids": ",".join(runs)}
    words = [word for option in options.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = store.without_password(done.stderr.strip())
        raise Refused(f"mlflow gc: {said}; the cache is swept, the runs are not")
