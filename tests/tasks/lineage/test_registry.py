from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.lineage import hashes, provenance, registry, signing, store, submission
from tasks.lineage.registry import RegistryError
from tasks.lineage.stage import StageError
from tasks.lineage.tracking import Spool

pytest_plugins = ("work_trees",)

MODEL = "shipments-candidates"


def versions() -> list:
    return list(store.connect().search_model_versions(f"name = '{MODEL}'"))


def runs() -> list:
    client = store.connect()
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(everywhere))


def test_a_reviewer_finds_all_in_one_place(pipeline) -> None:
    spool = Spool(Path(".tunetrail/spool"), "merge", "shipments")
    spool.start({}, {})
    spool.write("tag", key="out:models/onnx", value=hashes.dvc_md5(Path("models/onnx")))
    spool.end("FINISHED")
    out = pipeline.register()
    (version,) = versions()
    identity = provenance.identity(out)
    facts = pipeline.candidate().facts
    made = {run.info.run_name: run for run in runs()}
    tags = version.tags
    assert tags["identity"] == identity
    assert tags["verdict"] == "pass"
    assert tags["gate:test/exact_match"] == "pass: 0.9 is at least 0.8"
    assert tags["base"].startswith("scratch:")
    assert tags["params"] == facts["params_sha256"]
    assert tags["data:data/raw"] == hashes.dvc_md5(Path("data/raw"))
    assert tags["run:merge"] == made["merge"].info.run_id
    assert "run:base" not in tags
    assert version.description.splitlines() == [
        f"**pass**: dpo, on {tags['base']}",
        "",
        "| split | metric | dpo | base | gate |",
        "| --- | --- | --- | --- | --- |",
        "| test | exact_match | 0.9 (0.8 to 0.95) | 0 (0 to 0.1) | pass: 0.9 is at least 0.8 |",
        "| hard_test | exact_match |  |  |  |",
    ]
    client = store.connect()
    assert client.get_model_version_by_alias(MODEL, "challenger").version == version.version

    run = made[f"candidate-{identity[:8]}"]
    assert run.info.run_id == version.run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"test/exact_match": 0.9}
    paths = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert paths == {
        "bom.cdx.json",
        "contract.json",
        "dpo",
        "dvc.yaml",
        "evaluate.metrics.json",
        "merged",
        "params.yaml",
        "provenance.json",
        "report",
        "requirements.lock",
        "sft",
        "signature.json",
        "statement.json",
        "verdict.json",
    }
    for document in ("statement", "signature"):
        uploaded = Path(client.download_artifacts(run.info.run_id, f"{document}.json"))
        assert tags[document] == hashes.file_hash(uploaded, "sha256")
    assert tags["signer"] == signing.fingerprint(signing.own_key())
    uploaded = Path(client.download_artifacts(run.info.run_id, "provenance.json"))
    assert provenance.identity(uploaded) == identity
    merged = Path(client.download_artifacts(run.info.run_id, "merged"))
    assert hashes.manifest(merged) == facts["files"]["merged"]
    adapter = Path(client.download_artifacts(run.info.run_id, "dpo"))
    assert hashes.manifest(adapter) == facts["files"]["dpo"]


def test_the_run_shows_its_data_by_our_digest(light) -> None:
    light.register()
    (run,) = runs()
    shown = {
        entry.dataset.name: {tag.key: tag.value for tag in entry.tags}
        for entry in run.inputs.dataset_inputs
    }
    assert shown == {
        "train": {
            "mlflow.data.context": "training",
            "tunetrail.sha256": hashes.sha256(Path("data/formatted/train.jsonl")),
        },
        "corpus": {
            "mlflow.data.context": "training",
            "tunetrail.sha256": hashes.sha256(Path("data/corpus.jsonl")),
        },
        "raw": {
            "mlflow.data.context": "training",
            "tunetrail.sha256": hashes.sha256(Path("data/raw")),
        },
    }


ASK = """
import logging, sys
import mlflow, pandas as pd

model = mlflow.pyfunc.load_model("models:/shipments-candidates/1")
inputs, outputs = model.metadata.signature.inputs, model.metadata.signature.outputs
print(inputs, outputs, "torch" in sys.modules, "tasks" in sys.modules)
print(len(model.predict(pd.DataFrame({"message": ["late", "hello"]}))["answer"]))
"""


def test_a_registered_model_answers_without_this_repository(pipeline, tmp_path: Path) -> None:
    pipeline.register()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{Path('mlflow.db').resolve()}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert "Warning" not in asked.stderr
    schema, count = asked.stdout.splitlines()
    assert schema == "['message': string (required)] ['answer': string (required)] True False"
    assert count == "2"
    (folder,) = Path("mlruns").glob("*/models/*/artifacts")
    assert list(folder.rglob("*.pkl")) == []
    assert "onnxruntime-genai==" in (folder / "requirements.txt").read_text()
    assert "torch==" not in (folder / "requirements.txt").read_text()


def test_without_onnx_the_merged_model_is_served(pipeline_without_onnx) -> None:
    pipeline_without_onnx.register()
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    assert len(model.predict(pd.DataFrame({"message": ["hello"]}))) == 1
    (folder,) = Path("mlruns").glob("*/models/*/artifacts")
    assert "torch==" in (folder / "requirements.txt").read_text()
    assert (folder / "artifacts/merged/model.safetensors").exists()


STEPS = [
    (signing, "signing_key"),
    (submission, "_save_model"),
    (submission, "prepare"),
    (registry, "_input"),
    (registry, "_upload_model"),
    (registry, "_upload"),
    (registry, "_uploaded_statement"),
    (registry, "_create"),
    (registry, "_link_runs"),
]


@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
def test_killed_anywhere_and_run_again_there_is_one_version(
    light, monkeypatch: pytest.MonkeyPatch, module, step: str
) -> None:
    original = getattr(module, step)

    def dies(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, dies)
        with pytest.raises(KeyboardInterrupt):
            light.register()
    light.register()
    (version,) = versions()
    (run,) = runs()
    assert run.info.run_id == version.run_id
    assert run.info.status == "FINISHED"
    client = store.connect()
    assert client.get_model_version_by_alias(MODEL, "challenger").version == version.version
    uploaded = Path(client.download_artifacts(run.info.run_id, "statement.json"))
    assert version.tags["statement"] == hashes.file_hash(uploaded, "sha256")


def test_other_content_is_another_version(light) -> None:
    light.register()
    Path("models/base/model.safetensors").write_text("other")
    light.record()
    light.register()
    assert sorted(int(version.version) for version in versions()) == [1, 2]
    assert len({version.tags["identity"] for version in versions()}) == 2
    assert store.connect().get_model_version_by_alias(MODEL, "challenger").version == 2


def test_of_two_clones_that_register_at_once_the_first_counts(
    light, monkeypatch: pytest.MonkeyPatch
) -> None:
    light.register()
    found = registry._registered
    answers = iter([None])  # the other's version is made between our look and our own
    monkeypatch.setattr(
        registry, "_registered", lambda *arguments: next(answers, found(*arguments))
    )
    version = registry.ensure_version(light.candidate())
    assert version.number == 1
    assert [int(version.version) for version in versions()] == [1]


def test_runs_that_are_delivered_late_are_linked(light) -> None:
    light.register()
    spool = Spool(Path(".tunetrail/spool"), "base", "shipments")
    spool.start({}, {})
    spool.write("tag", key="out:models/base", value=hashes.dvc_md5(Path("models/base")))
    spool.end("FINISHED")
    version, problems = registry.sync(light.candidate())
    assert problems == []
    assert version is not None and not version.created
    assert "run:base" in versions()[0].tags


def test_files_that_are_not_what_was_recorded_are_refused(light) -> None:
    light.register()
    candidate = light.candidate()
    Path("models/merged/config.json").write_text("{}")
    with pytest.raises(StageError) as raised:
        registry.ensure_version(candidate)
    assert str(raised.value) == (
        "models/merged is not what provenance.json describes; "
        "run `dvc checkout`, or `dvc repro` to make both anew"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: Path("data/raw/rows.jsonl").write_text("{}{}"), "data/raw"),
        (lambda: shutil.rmtree("data/raw"), "data/raw"),
    ],
    ids=["changed", "missing"],
)
def test_what_was_changed_since_is_not_claimed_for_the_version(light, change, named: str) -> None:
    """Else the commit and the changes in the statement would not tell what it was made from."""
    light.register()
    change()
    with pytest.raises(StageError) as raised:
        registry.ensure_version(light.candidate())
    assert str(raised.value) == (
        f"{named} was changed since provenance.json was written, so the commit would not tell what "
        "the model was made from; undo that, or run `dvc repro`"
    )


def test_data_that_dvc_tracks_may_lie_elsewhere(light) -> None:
    """In a clone that has pulled outputs only."""
    light.register()
    shutil.rmtree("data/raw")
    Path("data/raw.dvc").write_text("outs: []")
    assert not registry.ensure_version(light.candidate()).created


def test_a_model_that_does_not_answer_is_not_registered(pipeline) -> None:
    Path("models/onnx/model.onnx").write_bytes(b"torn")
    pipeline.record()
    with pytest.raises(StageError, match=r"models/onnx does not answer 'the truck .*as it would"):
        pipeline.register()
    assert versions() == []


def test_what_serving_needs_must_be_pinned(light) -> None:
    lock = Path("requirements.lock")
    kept = [line for line in lock.read_text().splitlines() if not line.startswith("onnxruntime")]
    lock.write_text("\n".join(kept))
    with pytest.raises(StageError) as raised:
        light.register()
    assert str(raised.value) == (
        "requirements.lock does not pin onnxruntime, onnxruntime-genai, which serving needs; "
        "add the installed version"
    )
    assert runs() == []


def test_what_mlflow_refuses_is_told(light, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments):
        raise PermissionError("trainer may not write shipments-candidates")

    monkeypatch.setattr(registry, "_create", refuses)
    with pytest.raises(RegistryError) as raised:
        light.register()
    assert raised.value.exit_code == 3
    assert str(raised.value) == (
        "MLflow refuses to register shipments-candidates: trainer may not write "
        "shipments-candidates; mend that, then run `tunetrail sync`"
    )


def test_a_server_that_goes_away_meanwhile_delays_the_version(
    light, monkeypatch: pytest.MonkeyPatch, closed_port: str
) -> None:
    def goes_away(*arguments):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(registry, "_create", goes_away)
    assert light.register().exists()
    assert Path(".tunetrail/pending/register.json").exists()
