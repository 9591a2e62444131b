from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.lineage import evidence, hashes, signing, store
from tasks.lineage.verify import Report, verify

pytest_plugins = ("work_trees",)

MODEL = "shipments-candidates"
CHECKS = [
    "signature",
    "files",
    "statement",
    "identity",
    "provenance",
    "stages",
    "base",
    "verdict",
    "contract",
    "tags",
    "numbers",
    "runs",
]


def uploaded(name: str) -> Path:
    (path,) = Path("mlruns").glob(f"*/*/artifacts/{name}")
    return path


def served(name: str) -> Path:
    (path,) = Path("mlruns").glob(f"*/models/*/artifacts/{name}")
    return path


def failed(report: Report) -> dict[str, str]:
    return {finding.check: finding.why for finding in report.failed}


def sign_anew() -> None:
    """As someone who has the key would, to show what is checked beyond the signature."""
    client = store.connect()
    found = client.get_model_version(MODEL, "1")

    def digests() -> dict[str, str]:
        files = evidence.collect(client, found, Path("unused")).sha256
        return {name: sha for name, sha in files.items() if name != evidence.SIGNATURE}

    path = uploaded("statement.json")
    said = json.loads(path.read_text())
    others = {name: sha for name, sha in digests().items() if name != evidence.STATEMENT}
    said["subject"] = [{"name": name, "digest": {"sha256": sha}} for name, sha in others.items()]
    path.write_text(json.dumps(said))
    uploaded("signature.json").write_text(signing.sign(digests(), signing.signing_key()))
    for tag in ("statement", "signature"):
        digest = hashes.file_hash(uploaded(f"{tag}.json"), "sha256")
        client.set_model_version_tag(MODEL, "1", tag, digest)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["1", "challenger"])
def test_a_version_holds(light, name: str) -> None:
    light.register()
    report = verify(MODEL, name)
    assert [finding.check for finding in report.findings] == CHECKS
    assert failed(report) == {}
    assert report.holds
    assert report.number == 1
    assert report.identity == hashes.file_hash(Path("models/provenance.json"), "sha256")
    assert report.signer == signing.fingerprint(signing.signing_key())


def test_one_without_onnx_holds(pipeline_without_onnx) -> None:
    pipeline_without_onnx.register()
    assert failed(verify(MODEL, "1")) == {}


def test_a_copy_under_another_name_holds(light) -> None:
    """As promotion makes it."""
    light.register()
    client = store.connect()
    client.copy_model_version(f"models:/{MODEL}/1", "shipments")
    assert failed(verify("shipments", "1")) == {}


def test_the_reason_of_a_retraining_comes_after_the_signature(light) -> None:
    light.register()
    client = store.connect()
    client.log_text(client.get_model_version(MODEL, "1").run_id, "{}", "drift/drift.json")
    client.set_model_version_tag(MODEL, "1", "retraining.reason", "the word truck is new")
    assert failed(verify(MODEL, "1")) == {}
    client.log_text(client.get_model_version(MODEL, "1").run_id, "{}", "drifted.json")
    assert "drifted.json" in failed(verify(MODEL, "1"))["files"]


def test_a_version_of_another_model_does_not_stand_in_for_this_one(light) -> None:
    light.register()
    store.connect().copy_model_version(f"models:/{MODEL}/1", "invoices")
    assert failed(verify("invoices", "1")) == {
        "statement": f"it is about a version of {MODEL}, another model"
    }


def test_a_model_that_was_loaded_where_it_lies_holds_but_not_with_bytecode(light) -> None:
    light.register()
    note = served("MLmodel").with_name("registered_model_meta")
    note.write_text(f"model_name: {MODEL}\nmodel_version: '1'\n")
    assert failed(verify(MODEL, "1")) == {}
    cache = note.with_name("__pycache__")
    cache.mkdir()
    (cache / "served.cpython-311.pyc").write_bytes(b"code")
    why = failed(verify(MODEL, "1"))["files"]
    assert why == (
        "added: model/__pycache__/served.cpython-311.pyc; Python wrote that when the model was loaded "
        "where it lies, and runs it in place of its source: delete it"
    )
    shutil.rmtree(cache)
    note.write_text("model_name: x\nloader: evil\n")
    assert "added: model/registered_model_meta" in failed(verify(MODEL, "1"))["files"]


def test_an_edited_file_is_named(light) -> None:
    light.register()
    uploaded("merged/config.json").write_text("{}")
    told = failed(verify(MODEL, "1"))
    assert told["signature"] == "signed for other files than lie here"
    assert told["files"] == "changed: merged/config.json"
    assert told["provenance"] == "changed: merged/config.json"
    assert "verdict" not in told


def test_a_key_that_nobody_here_trusts_fails(light, monkeypatch: pytest.MonkeyPatch) -> None:
    light.register()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("elsewhere").resolve()))
    (why,) = failed(verify(MODEL, "1")).values()
    assert why.endswith(
        "put its public half into trusted_keys/ (or name it in TUNETRAIL_TRUSTED_KEYS)"
    )
    Path("trusted_keys").mkdir()
    public = signing.public_half(Path("config/tunetrail/signing-key.pem"))
    shutil.copyfile(public, "trusted_keys/ada.pem")
    assert verify(MODEL, "1").holds


def test_a_verdict_that_the_numbers_do_not_give_fails_though_signed(light) -> None:
    light.register()

    def worse(measured: dict) -> None:
        measured["candidates"]["dpo"]["test"]["exact_match"]["value"] = 0.5

    edit(uploaded("evaluate.metrics.json"), worse)
    sign_anew()
    told = failed(verify(MODEL, "1"))
    assert "signature" not in told and "files" not in told
    assert told["verdict"] == (
        "verdict.json says exact_match passes (0.9 is at least 0.8), but metrics and gates give "
        "exact_match fails (0.5 is below 0.8)"
    )
    assert told["numbers"].endswith("test/exact_match is 0.9, signed is 0.5")
    assert "evaluate.metrics.json is " in told["provenance"]
    assert "tags" in told  # the description tells the number


def test_stages_that_do_not_fit_together_fail_though_signed(light) -> None:
    light.register()

    def forge(facts: dict) -> None:
        stages = {stage["stage"]: stage for stage in facts["stages"]}
        stages["merge"]["inputs"]["models/dpo"] = "0" * 32

    edit(uploaded("provenance.json"), forge)
    sign_anew()
    told = failed(verify(MODEL, "1"))
    assert told["stages"].startswith(f"merge read models/dpo as {'0' * 32}, but dpo made ")
    assert told["identity"].startswith("tag identity is ")


def test_a_base_that_can_move_fails_though_signed(light) -> None:
    light.register()

    def move(facts: dict) -> None:
        hub = {"repo": "team/model", "revision": "main"}
        facts["base"] |= {"source": "hub", "pinned": hub}
        base = next(stage for stage in facts["stages"] if stage["stage"] == "base")
        base["params"]["base"] = {"source": "hub", "hub": hub}

    edit(uploaded("provenance.json"), move)
    sign_anew()
    assert failed(verify(MODEL, "1"))["base"] == "revision 'main' is no commit, and can move"


def test_another_template_fails_though_signed(light) -> None:
    light.register()
    served("artifacts/onnx/chat_template.jinja").write_text("{{ messages }}")
    sign_anew()
    told = failed(verify(MODEL, "1"))
    assert told["contract"] == "its chat template is another than in training"


def test_what_people_read_must_be_what_is_signed(light) -> None:
    light.register()
    client = store.connect()
    description = client.get_model_version(MODEL, "1").description
    client.update_model_version(MODEL, "1", f"{description}\n\nA remark by the reviewer.")
    client.set_model_version_tag(MODEL, "1", "reviewed", "not yet")
    assert verify(MODEL, "1").holds
    client.set_model_version_tag(MODEL, "1", "gate:test/invented", "pass: 1 is at least 0")
    assert failed(verify(MODEL, "1")) == {
        "tags": "gate:test/invented of the version's tags differ from the signed files: "
        "gate:test/invented is 'pass: 1 is at least 0', signed is None"
    }
    client.delete_model_version_tag(MODEL, "1", "gate:test/invented")
    client.update_model_version(MODEL, "1", description.replace("0.9", "0.99"))
    assert list(failed(verify(MODEL, "1"))) == ["tags"]


def test_a_link_to_a_run_that_made_something_else_fails(light) -> None:
    light.register()
    client = store.connect()
    run = client.get_model_version(MODEL, "1").run_id
    client.set_model_version_tag(MODEL, "1", "run:merge", run)
    assert failed(verify(MODEL, "1")) == {
        "runs": f"run {run} of tag run:merge did not make what the provenance names"
    }


def test_missing_documents_fail_every_check_that_needs_them(light) -> None:
    light.register()
    for name in ("provenance.json", "statement.json", "signature.json"):
        uploaded(name).unlink()
    told = failed(verify(MODEL, "1"))
    assert told["signature"] == told["files"] == "signature.json is missing"
    assert told["identity"] == "provenance.json is missing"
    assert set(told) == set(CHECKS) - {"contract"}


def test_a_link_in_place_of_a_file_fails(light) -> None:
    light.register()
    path = uploaded("merged/config.json")
    path.rename(Path("kept"))
    path.symlink_to(Path("kept").resolve())
    assert failed(verify(MODEL, "1"))["files"] == "changed: merged/config.json"


@pytest.mark.parametrize(
    "reference", ["shipments", "@1", "shipments@", "shipments-candidates@7", "shipments@champion"]
)
def test_what_names_no_version_is_refused(light, reference: str) -> None:
    light.register()
    with pytest.raises(evidence.NotFound) as raised:
        verify(*evidence.parse(reference))
    told = str(raised.value)
    assert "write NAME@VERSION" in told or told.endswith("; known: shipments-candidates@1")
