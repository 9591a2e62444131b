from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import statement
from tasks.lineage.git import WorkTree
from tasks.lineage.stage import StageError
from tasks.lineage.statement import StageRun, Statement

FACTS: dict[str, Any] = {
    "params_sha256": "p" * 64,
    "environment_sha256": "e" * 64,
    "chat_contract_sha256": "c" * 64,
    "base": {"source": "scratch", "pinned": {}, "outputs": {}},
    "stages": [
        {
            "stage": "base",
            "params": {"base": {"source": "scratch"}},
            "inputs": {"data/raw": "d" * 32, "tasks/base.py": "b" * 32, "requirements.lock": "1"},
            "outputs": {"models/base": {"md5": "m" * 32, "sha256": "s" * 64}},
        },
        {
            "stage": "sft",
            "params": {"sft": {"epochs": 1}},
            "inputs": {"models/base": "m" * 32},
            "outputs": {"models/sft": {"md5": "n" * 32, "sha256": "t" * 64}},
        },
    ],
}
VERDICT = {"candidate": "dpo", "verdict": "pass", "gates": []}
PATCH = b"diff --git a/x b/x\n\xff\xfe"
HERE = WorkTree("0" * 40, "main", "https://example.org/repo.git", ["x"], PATCH)


def build(here: WorkTree = HERE) -> dict[str, Any]:
    return statement.build(
        name="shipments-candidates",
        files={"provenance.json": "a" * 64, "merged/model.safetensors": "b" * 64},
        facts=FACTS,
        verdict=VERDICT,
        work_tree=here,
        runs={"sft": StageRun("run1", 1_000_000, 2_000_000)},
        datasets={"data/formatted/train.jsonl": "f" * 64},
        machine={"python": "3.11"},
        author="ada@example.org",
        run_id="run0",
        finished=3_000_000,
    )


def read(document: dict[str, Any], folder: Path) -> Statement:
    path = folder / "statement.json"
    path.write_text(statement.as_text(document), encoding="utf-8")
    return Statement.read(path)


def test_what_was_stated_is_read_back(tmp_path: Path) -> None:
    said = read(build(), tmp_path)
    assert said.identity == "a" * 64
    assert said.files["merged/model.safetensors"] == "b" * 64
    assert said.model == "shipments-candidates"
    assert (said.commit, said.branch, said.remote) == (HERE.commit, "main", HERE.remote)
    assert said.changes == PATCH
    assert said.changed_files == ["x"]
    assert said.params == {"base": {"source": "scratch"}, "sft": {"epochs": 1}}
    assert said.sources == {"data/raw": "d" * 32, "tasks/base.py": "b" * 32}
    assert said.runs == {"sft": "run1"}
    assert said.datasets == {"data/formatted/train.jsonl": "f" * 64}
    assert (said.run_id, said.author, said.verdict) == ("run0", "ada@example.org", VERDICT)
    assert said.machine == {"python": "3.11"}
    assert said.finished_on == "1970-01-01T00:50:00Z"


def test_it_is_an_in_toto_statement_with_slsa_provenance() -> None:
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement as in_toto
    from in_toto_attestation.v1 import statement_pb2

    document = build()
    parsed = json_format.ParseDict(document, statement_pb2.Statement())
    in_toto.Statement.copy_from_pb(parsed).validate()
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    # fields of our own begin with our name, which parsers of SLSA pass over
    details = document["predicate"]["runDetails"]
    known = {key: value for key, value in details.items() if not key.startswith("tunetrail_")}
    predicate = {**document["predicate"], "runDetails": known}
    told = json_format.ParseDict(predicate, provenance_pb2.Provenance())
    assert told.run_details.metadata.started_on.seconds == 1_000
    assert told.build_definition.resolved_dependencies[1].content == PATCH


def test_without_git_and_changes_none_are_told(tmp_path: Path) -> None:
    said = read(build(WorkTree(None, None, None, [], b"")), tmp_path)
    assert (said.commit, said.branch, said.remote) == (None, None, None)
    assert said.changes == b""
    assert said.changed_files == []


def test_a_patch_that_was_altered_is_refused(tmp_path: Path) -> None:
    document = build()
    for entry in document["predicate"]["buildDefinition"]["resolvedDependencies"]:
        if entry["name"] == "uncommitted changes":
            entry["digest"]["sha256"] = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(StageError, match="is not the one whose hash it gives"):
        _ = read(document, tmp_path).changes


def test_a_statement_of_another_kind_is_refused(tmp_path: Path) -> None:
    document = build()
    document["predicate"]["buildDefinition"]["buildType"] = "urn:other"
    with pytest.raises(StageError) as raised:
        read(document, tmp_path)
    assert str(raised.value) == (
        "statement.json is a statement of another kind (urn:other); "
        "read it with the version of Tunetrail that wrote it"
    )


def test_the_same_facts_give_the_same_bytes() -> None:
    assert statement.as_text(build()) == statement.as_text(json.loads(statement.as_text(build())))
