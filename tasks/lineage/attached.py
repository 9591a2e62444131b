"""Documents that come to a version after its signature, and carry seals of their own.

They lie with the version's run in MLflow, in a folder a kind, and are not among the files that were
signed.  Each is a file, written once and never again, so that nobody who adds one can lose
another's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import hashes, store
from tasks.lineage.stage import StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def read(client: MlflowClient, version: Any, folder: str) -> dict[str, str]:
    """The text of each document in a folder of a version's run, by file name.

    Raises:
        StageError: when they cannot be read, which is not the same as that there are none.
    """
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as scratch:
        try:
            if not client.list_artifacts(version.run_id, folder):
                return {}
            place = Path(client.download_artifacts(version.run_id, folder, scratch))
            return {
                path.name: path.read_text(encoding="utf-8", errors="replace")
                for path in sorted(place.glob("*.json"))
            }
        except Exception as error:  # what a store of artifacts raises depends on its kind
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return {}  # the run is gone; `verify` says so
            raise StageError(
                f"{folder}/ of {version.name}@{version.version} cannot be read: "
                f"{store.brief(error)}; see that MLflow's artifacts are reachable, then try again"
            ) from error


def add(
    client: MlflowClient, run_id: str, folder: str, kind: str, sealed: Mapping[str, Any]
) -> None:
    """Keep a sealed document, under a name of its own."""
    name = f"{folder}/{kind}-{hashes.sha256_json(sealed)[:16]}.json"
    client.log_text(run_id, json.dumps(sealed, indent=1, ensure_ascii=False), name)
