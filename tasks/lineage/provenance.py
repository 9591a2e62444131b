"""What a model was made from: hashes alone, joined from the records that the stages wrote.

No clock, commit or machine stands in it (law 5 of the design), so that who rebuilds the model gets
the same bytes, and the sha256 of these bytes identifies the version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.lineage import hashes
from tasks.lineage.stage import StageError

SCHEMA = 1
"""Of the document. Another number means that an older reader must not guess."""

Record = Mapping[str, Any]
"""Of the stage runner: stage, params, inputs {path: md5}, outputs {path: {md5, sha256}}."""


def read_records(folder: Path) -> list[Record]:
    """The records of all stages that ever ran in this work tree."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def behind(paths: Iterable[Path], records: Iterable[Record]) -> list[Record]:
    """The records of the stages that these outputs depend on, each behind those that it reads from.

    Raises:
        StageError: when no record tells of one of the paths, or two tell of the same.
    """
    return _in_order(paths, _makers(records))


def build(
    records: Sequence[Record],
    environment_lock: Path,
    contract: Path,
    models: Sequence[Path],
    evidence: Sequence[Path],
) -> dict[str, Any]:
    """Join the records of the stages that made a model.

    Args:
        records: a record of a stage that neither model nor evidence depends on is left out.
        environment_lock: the file that pins every package.
        contract: the chat contract that `format` wrote.
        models: folders whose every file is told: adapters, the model in Hugging Face format, and as
            it is served; one is empty where a stage is switched off.
        evidence: other files and folders that speak for the model, each an output of a stage.

    Raises:
        StageError: when records do not fit together: one is of another run than the rest.
    """
    makers = _makers(records)
    stages = _in_order([*models, *evidence], makers)
    _check_inputs(stages, makers)
    for path in (*models, *evidence):
        _check_on_disk(path, makers)
    params = _params(stages)
    return {
        "schema": SCHEMA,
        "params_sha256": hashes.sha256_json(params),
        "environment_sha256": hashes.sha256(environment_lock),
        "chat_contract_sha256": hashes.sha256(contract),
        "base": _base(stages, params),
        "stages": [dict(record) for record in stages],
        "files": {folder.name: hashes.manifest(folder) for folder in models},
    }


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the document; the same content gives the same bytes."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def identity(path: Path) -> str:
    """The sha256 by which a version is known."""
    return hashes.file_hash(path, "sha256")


def _makers(records: Iterable[Record]) -> dict[str, Record]:
    """The record of the stage that wrote each output, by the output's path."""
    makers: dict[str, Record] = {}
    for record in records:
        for path in record["outputs"]:
            if path in makers:
                raise StageError(
                    f"{path} is an output of {makers[path]['stage']} and of {record['stage']} in "
                    "models/records; delete the record of the one that dvc.yaml does not have"
                )
            makers[path] = record
    return makers


def _in_order(paths: Iterable[Path], makers: Mapping[str, Record]) -> list[Record]:
    """The stages that these paths depend on, each behind those that it reads from."""
    ordered: dict[str, Record] = {}

    def visit(record: Record) -> None:
        if record["stage"] in ordered:
            return
        for path in sorted(record["inputs"]):
            if path in makers:
                visit(makers[path])
        ordered[record["stage"]] = record

    for path in paths:
        visit(_maker(path, makers))
    return list(ordered.values())


def _maker(path: Path, makers: Mapping[str, Record]) -> Record:
    if record := makers.get(path.as_posix()):
        return record
    raise StageError(f"no stage has recorded that it made {path}; run `dvc repro`")


def _check_inputs(stages: Iterable[Record], makers: Mapping[str, Record]) -> None:
    """Each stage must have read what the stage before it made, and all the same data and code."""
    known = {
        path: (f"{record['stage']} made", output["md5"])
        for record in makers.values()
        for path, output in record["outputs"].items()
    }
    for record in stages:
        stage = record["stage"]
        for path, read in record["inputs"].items():
            told, digest = known.setdefault(path, (f"{stage} read", read))
            if read != digest:
                raise StageError(
                    f"{stage} read {path} as {read}, but {told} {digest}: "
                    f"models/records/{stage}.json is stale; run `dvc repro`"
                )


def _check_on_disk(path: Path, makers: Mapping[str, Record]) -> None:
    made = _maker(path, makers)["outputs"][path.as_posix()]["sha256"]
    if (found := hashes.sha256(path)) != made:
        stage = _maker(path, makers)["stage"]
        raise StageError(
            f"{path} has sha256 {found}, but {stage} recorded {made}; run `dvc checkout {path}`"
        )


def _params(stages: Iterable[Record]) -> dict[str, Any]:
    """Every section that a stage read."""
    sections: dict[str, Any] = {}
    for record in stages:
        for name, values in record["params"].items():
            if sections.setdefault(name, values) != values:
                raise StageError(
                    f"{record['stage']} read another section {name} of params.yaml than the "
                    f"stages before it: models/records/{record['stage']}.json is stale; "
                    "run `dvc repro`"
                )
    return sections


def _base(stages: Sequence[Record], params: Mapping[str, Any]) -> dict[str, Any]:
    """Which base model, by the name that its source gives it and by content."""
    settings = params["base"]
    record = next(record for record in stages if record["stage"] == "base")
    return {
        "source": settings["source"],
        "pinned": settings[settings["source"]],
        "outputs": record["outputs"],
    }
