"""The MLflow store of this clone, served without accounts: the same runs and versions as without it.

    python -m flows.mlflow_server HOST PORT ARTIFACTS

Artifacts are not passed through the server.  So a run that is made without it can be read through it,
and the other way round.
"""

from __future__ import annotations

import sys

from tasks.lineage.process import die_with_parent


def _serve(host: str, port: str, artifacts: str) -> None:
    die_with_parent()
    from mlflow.cli import cli

    cli(
        [
            *("server", "--host", host, "--port", port, "--workers", "1"),
            *("--no-serve-artifacts", "--default-artifact-root", artifacts),
            "--uvicorn-opts=--log-level warning",
        ]
    )


if __name__ == "__main__":
    _serve(*sys.argv[1:])
