"""Write the provenance of the model, and make it a version in the MLflow registry."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.lineage import provenance, registry, stage, store
from tasks.lineage.console import log
from tasks.lineage.registry import Version
from tasks.lineage.stage import Metrics, Out
from tasks.lineage.submission import Candidate
from tasks.params import Register, load

ENVIRONMENT_LOCK = Path("requirements.lock")
PENDING = stage.STATE / "pending" / "register.json"
"""There while a candidate could not be registered."""


def run(
    records: Path,
    sft: Path,
    dpo: Path,
    merged: Path,
    onnx: Path,
    data: Path,
    corpus: Path,
    report: Path,
    verdict: Path,
    metrics: Path,
    out: Out,
    register: Register,
) -> Metrics:
    """Write what the model was made from, then register it; MLflow down delays only the latter."""
    document = provenance.build(
        provenance.read_records(records),
        environment_lock=ENVIRONMENT_LOCK,
        contract=data / "contract.json",
        models=[sft, dpo, merged, onnx],
        evidence=[data, corpus, report, verdict, metrics],
    )
    provenance.write(document, out)
    candidate = Candidate(
        settings=register,
        provenance=out,
        environment_lock=ENVIRONMENT_LOCK,
        sft=sft,
        dpo=dpo,
        merged=merged,
        onnx=onnx,
        data=data,
        corpus=corpus,
        report=report,
        verdict=verdict,
        metrics=metrics,
    )
    try:
        registry.deliver_runs()  # so that the version can name them; the courier tells of problems
        _tell(registry.ensure_version(candidate))
    except store.Unreachable as error:
        _remember(provenance.identity(out))
        log.warning("%s; the version waits for `tunetrail sync`", error)
    else:
        PENDING.unlink(missing_ok=True)
    return {}


def sync() -> tuple[Version | None, list[str]]:
    """Deliver what waits for MLflow: runs, and the version of the provenance that lies here.

    The version can also be missing because DVC restored every stage, or because MLflow is another.

    Returns:
        The version (None before the first provenance), and what could not be delivered.

    Raises:
        As `registry.ensure_version`.
    """
    paths = stage.arguments(run)
    if not paths["out"].exists():
        return registry.sync(None)
    settings = load(Path("params.yaml")).register_
    paths["provenance"] = paths.pop("out")
    del paths["records"]
    candidate = Candidate(settings=settings, environment_lock=ENVIRONMENT_LOCK, **paths)
    done = registry.sync(candidate)
    PENDING.unlink(missing_ok=True)
    return done


def _tell(version: Version) -> None:
    what = "is now" if version.created else "was already"
    log.info("the candidate %s version %d of %s", what, version.number, version.model)


def _remember(identity: str) -> None:
    PENDING.parent.mkdir(parents=True, exist_ok=True)
    PENDING.write_text(json.dumps({"identity": identity}), encoding="utf-8")


if __name__ == "__main__":
    stage.main(run)
