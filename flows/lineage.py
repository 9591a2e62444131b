"""Which artifacts, stages and versions hang together, in this work tree and in the registry."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import audit, drawing, graph, provenance, store
from tasks.lineage.console import log
from tasks.lineage.graph import Graph, Node, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROVENANCE = Path("models/provenance.json")
WORK_TREE = "this work tree"


def known() -> Graph:
    """Everything that the work tree and the registry have provenance of.

    MLflow out of reach costs a warning: what lies here is shown all the same.
    """
    found = Graph()
    registered: set[str] = set()
    try:
        for version, document in _registered(store.connect()):
            registered.add(version.identity)
            found.add(version, document["stages"])
    except store.Unreachable as error:
        log.warning("%s; only what lies in this work tree is shown", error)
    if PROVENANCE.is_file() and provenance.identity(PROVENANCE) not in registered:
        document = json.loads(PROVENANCE.read_text(encoding="utf-8"))
        found.add(Version(WORK_TREE, provenance.identity(PROVENANCE)), document["stages"])
    return found


def _registered(client: MlflowClient) -> Iterator[tuple[Version, Mapping[str, Any]]]:
    """Every version that has a provenance, with it; a version that was copied shares its run."""
    documents: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for model in store.every(client.search_registered_models):
        aliases: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        for version in audit.versions(client, model.name):
            if version.run_id not in documents:
                if not (read := _read(client, version.run_id)):
                    continue
                documents[version.run_id] = read
            identity, document = documents[version.run_id]
            named = tuple(sorted(aliases.get(str(version.version), ())))
            yield Version(f"{model.name}@{version.version}", identity, named), document


def _read(client: MlflowClient, run_id: str | None) -> tuple[str, Mapping[str, Any]] | None:
    """Identity and content of the provenance that a run holds; None for a run of another kind."""
    from mlflow import MlflowException

    try:
        names = {item.path for item in client.list_artifacts(run_id)} if run_id else set()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = set()  # the run is gone for good
    if PROVENANCE.name not in names:
        return None
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        path = Path(client.download_artifacts(run_id, PROVENANCE.name, folder))
        return provenance.identity(path), json.loads(path.read_text(encoding="utf-8"))


def show(what: str, code: bool) -> str:
    """The lineage of what a text means, in lines.

    Raises:
        StageError: when it means nothing here, or several things.
    """
    everything = known()
    nodes = everything.find(what)
    return "\n\n".join("\n".join(graph.describe(everything, node, code)) for node in nodes)


def draw(what: str) -> str:
    """The same as a picture, in SVG."""
    everything = known()
    nodes = everything.find(what)
    around: set[Node] = set(nodes)
    for node in nodes:
        around |= {*everything.backwards(node), *everything.forwards(node)}
    return drawing.svg(everything, around, nodes)
