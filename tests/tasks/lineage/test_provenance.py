from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tasks.lineage import hashes, provenance
from tasks.lineage.stage import StageError


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def record(stage: str, params: dict, inputs: list[str], outputs: list[str]) -> dict:
    return {
        "stage": stage,
        "params": params,
        "inputs": {path: hashes.dvc_md5(Path(path)) for path in inputs},
        "outputs": {
            path: {"md5": hashes.dvc_md5(Path(path)), "sha256": hashes.sha256(Path(path))}
            for path in outputs
        },
    }


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Of a small pipeline, in an order that is not the DAG's."""
    monkeypatch.chdir(tmp_path)
    write("requirements.lock", "torch==2.13.0\n")
    write("data/raw/rows", "raw")
    write("tasks/model/chat.py", "code")
    write("models/base/weights", "base")
    write("data/formatted/contract.json", "{}")
    write("models/merged/weights", "merged")
    write("models/merged/sub/config.json", "{}")
    write("models/onnx/model.onnx", "onnx")
    write("models/verdict.json", "{}")
    base = {"source": "scratch", "scratch": {"layers": 4}}
    code = "tasks/model/chat.py"
    return [
        record("evaluate", {"compute": {"seed": 1}}, ["models/merged"], ["models/verdict.json"]),
        record("base", {"base": base, "compute": {"seed": 1}}, ["data/raw"], ["models/base"]),
        record(
            "merge",
            {"merge": {"onnx": True}},
            ["models/base", "data/formatted", code],
            ["models/merged", "models/onnx"],
        ),
        record("format", {"format": {}}, ["data/raw", "models/base", code], ["data/formatted"]),
    ]


def build(records: list[dict]) -> dict:
    return provenance.build(
        records,
        environment_lock=Path("requirements.lock"),
        contract=Path("data/formatted/contract.json"),
        models=[Path("models/merged"), Path("models/onnx")],
        evidence=[Path("models/verdict.json")],
    )


def test_it_tells_what_the_model_was_made_from(records: list[dict]) -> None:
    document = build(records)
    assert document["schema"] == 1
    assert [stage["stage"] for stage in document["stages"]] == [
        "base",
        "format",
        "merge",
        "evaluate",
    ]
    assert document["stages"][0] == records[1]
    assert document["base"] == {
        "source": "scratch",
        "pinned": {"layers": 4},
        "outputs": records[1]["outputs"],
    }
    assert document["environment_sha256"] == hashes.sha256(Path("requirements.lock"))
    assert document["chat_contract_sha256"] == hashes.sha256(Path("data/formatted/contract.json"))
    assert document["params_sha256"] == hashes.sha256_json(
        {
            "base": {"source": "scratch", "scratch": {"layers": 4}},
            "compute": {"seed": 1},
            "format": {},
            "merge": {"onnx": True},
        }
    )
    assert document["files"] == {
        "merged": hashes.manifest(Path("models/merged")),
        "onnx": hashes.manifest(Path("models/onnx")),
    }


def test_the_same_content_gives_the_same_bytes_anywhere(
    records: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance.write(build(records), Path("first.json"))
    provenance.write(build(list(reversed(copy.deepcopy(records)))), Path("second.json"))
    assert Path("first.json").read_bytes() == Path("second.json").read_bytes()
    assert provenance.identity(Path("first.json")) == provenance.identity(Path("second.json"))
    assert str(tmp_path) not in Path("first.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records[2]["params"]["merge"].update(onnx=False),
        lambda records: records[1]["inputs"].update({"tasks/base.py": "0" * 32}),
        lambda records: write("requirements.lock", "torch==2.14.0\n"),
        lambda records: write("data/formatted/contract.json", '{"template": 1}'),
    ],
)
def test_whatever_changes_changes_the_identity(records: list[dict], change) -> None:
    provenance.write(build(records), Path("before.json"))
    change(records)
    provenance.write(build(records), Path("after.json"))
    assert provenance.identity(Path("before.json")) != provenance.identity(Path("after.json"))


def test_a_stale_record_is_named(records: list[dict]) -> None:
    made = records[1]["outputs"]["models/base"]["md5"]
    records[3]["inputs"]["models/base"] = "0" * 32
    with pytest.raises(StageError) as raised:
        build(records)
    assert str(raised.value) == (
        f"format read models/base as {'0' * 32}, but base made {made}: "
        "models/records/format.json is stale; run `dvc repro`"
    )


def test_stages_that_read_other_versions_of_one_file_are_named(records: list[dict]) -> None:
    records[2]["inputs"]["tasks/model/chat.py"] = "0" * 32
    with pytest.raises(StageError, match=r"merge read .*chat.py as 0+, but format read "):
        build(records)


def test_stages_that_read_other_params_are_named(records: list[dict]) -> None:
    records[0]["params"]["compute"] = {"seed": 2}
    with pytest.raises(StageError, match=r"evaluate read another section compute of params.yaml"):
        build(records)


def test_a_model_that_no_stage_made_is_named(records: list[dict]) -> None:
    del records[2]
    with pytest.raises(StageError, match="no stage has recorded that it made models/merged"):
        build(records)


def test_a_model_that_was_changed_since_is_named(records: list[dict]) -> None:
    write("models/onnx/model.onnx", "tampered")
    with pytest.raises(StageError, match=r"models/onnx has sha256 .*, but merge recorded"):
        build(records)


def test_a_record_that_the_model_does_not_depend_on_is_left_out(records: list[dict]) -> None:
    before = build(records)
    write("data/other/x", "x")
    removed = record("removed", {}, ["data/raw"], ["data/other"])
    assert build([*records, removed]) == before


def test_an_output_of_two_stages_is_named(records: list[dict]) -> None:
    twin = {**records[1], "stage": "copy"}
    with pytest.raises(StageError, match="models/base is an output of base and of copy"):
        build([*records, twin])


def test_records_are_read_in_the_order_of_their_names(records: list[dict]) -> None:
    for entry in records:
        write(f"models/records/{entry['stage']}.json", json.dumps(entry))
    names = [entry["stage"] for entry in provenance.read_records(Path("models/records"))]
    assert names == ["base", "evaluate", "format", "merge"]
