"""Merge: what is written is what was trained, and what disagrees is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import Trained, machine_names

from tasks import merge
from tasks.lineage import hashes
from tasks.lineage.stage import GateError, StageError
from tasks.model import adapter, chat, merging
from tasks.params import Compute, Merge, Params

pytest_plugins = ("small_runs",)


@pytest.fixture(scope="session")
def without_onnx(params: Params) -> Merge:
    return params.merge.model_copy(update={"onnx": False})


def test_what_is_written(
    tiny_model: Path,
    dpo_run: Trained,
    formatted: Path,
    params: Params,
    compute: Compute,
    tmp_path: Path,
) -> None:
    out, onnx = tmp_path / "merged", tmp_path / "onnx"
    assert params.merge.onnx
    metrics = merge.run(tiny_model, dpo_run.out, formatted, out, onnx, params.merge, compute)
    assert metrics.pop("original_same_token") <= 1.0
    assert metrics == {
        "into": "nf4",
        "nf4_same_token": 1.0,
        "merged_same_token": 1.0,
        "merged_same_answer": 1.0,
        "onnx_same_token": 1.0,
        "onnx_same_answer": 1.0,
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model.safetensors"] == hashes.file_hash(out / "model.safetensors", "sha256")
    exported = {path.name for path in onnx.iterdir()}
    assert {"genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"} <= exported
    assert machine_names(tmp_path, tmp_path, tiny_model, dpo_run.out) == []


def test_no_number_is_no_match(without_onnx: Merge) -> None:
    for kl in (math.nan, math.inf):
        with pytest.raises(GateError, match=rf"differs from the one before it by {kl} nats"):
            merge.compared("onnx", (kl, 1.0), without_onnx)


def test_an_export_that_ends_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    file = tmp_path / "genai_config.json"
    file.write_text('{"model": {"eos_token_id": [7, 2]}}')
    merge.check_ends(tmp_path, tmp_path)
    file.write_text('{"model": {"eos_token_id": 5}}')
    with pytest.raises(GateError, match=r"ends answers at the tokens \[5\], and .* at \[2, 7\]"):
        merge.check_ends(tmp_path, tmp_path)


def test_what_is_not_loaded_as_it_was_trained_is_refused(
    tiny_model: Path,
    dpo_run: Trained,
    formatted: Path,
    without_onnx: Merge,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both sides of every comparison would lack the adapter."""
    monkeypatch.setattr(
        merging, "load_unmerged", lambda base, _: merging.adapters.load_base(base, "qlora")
    )
    with pytest.raises(
        GateError, match=r"what merge has loaded is not the model that was handed on"
    ):
        merge.run(
            tiny_model, dpo_run.out, formatted, tmp_path / "merged", tmp_path / "onnx",
            without_onnx, compute,
        )  # fmt: skip


def test_without_onnx_its_folder_is_empty(
    tiny_model: Path,
    formatted: Path,
    without_onnx: Merge,
    compute: Compute,
    tmp_path: Path,
) -> None:
    none, onnx = tmp_path / "none", tmp_path / "onnx"
    adapter.write_none(tiny_model, none)
    metrics = merge.run(
        tiny_model, none, formatted, tmp_path / "merged", onnx, without_onnx, compute
    )
    assert metrics == {"into": "weights", "merged_same_token": 1.0, "merged_same_answer": 1.0}
    assert list(onnx.iterdir()) == []


def test_a_merge_into_the_unquantised_weights_fails_the_gate(
    tiny_model: Path,
    dpo_run: Trained,
    formatted: Path,
    without_onnx: Merge,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mistake that the gate is there for; the same limit passes the right merge."""
    strict = without_onnx.model_copy(update={"max_kl": 1e-9})
    inputs = (tiny_model, dpo_run.out, formatted)
    merge.run(*inputs, tmp_path / "right", tmp_path / "right onnx", strict, compute)
    monkeypatch.setattr(merging, "_through_nf4", lambda model, trained: None)
    with pytest.raises(GateError, match="differs from the one before it by") as caught:
        merge.run(*inputs, tmp_path / "wrong", tmp_path / "wrong onnx", strict, compute)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        (
            "merged",
            "`dvc repro -f sft merge`; after qlora, see that bitsandbytes quantises alike each time",
        ),
        (
            "onnx",
            "set merge.onnx_precision to fp32, or merge.onnx to false to serve the merged model",
        ),
    ],
)
def test_the_text_of_the_gate(what: str, remedy: str, params: Params) -> None:
    limit = params.merge.max_kl
    assert merge.compared(what, (limit, 0.97123), params.merge) == {f"{what}_same_token": 0.97}
    with pytest.raises(GateError) as caught:
        merge.compared(what, (0.00234, 0.97), params.merge)
    assert str(caught.value) == (
        f"the {what} model differs from the one before it by 0.0023 nats a token, more than "
        f"merge.max_kl (0.0001); {remedy}"
    )


def test_another_chat_contract_is_refused(
    tiny_model: Path, formatted: Path, tmp_path: Path
) -> None:
    agreed: dict[str, Any] = json.loads((formatted / "contract.json").read_text())
    merge.check_contract(formatted, tiny_model)
    agreed["fixtures"][1]["mask"][-1] = 0
    (tmp_path / "contract.json").write_text(json.dumps(agreed))
    with pytest.raises(GateError) as caught:
        merge.check_contract(tmp_path, tiny_model)
    assert str(caught.value).startswith(
        f"{tiny_model} breaks the contract of {tmp_path / 'contract.json'}: chats are rendered "
        "otherwise than was agreed: fixture 1 differs in mask["
    )


def test_the_stage_checks_the_contract(
    tiny_model: Path, formatted: Path, without_onnx: Merge, compute: Compute, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = chat.load_tokenizer(model)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("'\\n'", "' '")
    tokenizer.save_pretrained(model)
    adapter.write_none(model, tmp_path / "none")
    with pytest.raises(GateError, match=r"breaks the contract of .*: template_sha256 is "):
        merge.run(
            model,
            tmp_path / "none",
            formatted,
            tmp_path / "merged",
            tmp_path / "onnx",
            without_onnx,
            compute,
        )


def test_an_adapter_of_another_model_is_refused(
    tiny_model: Path,
    dpo_run: Trained,
    formatted: Path,
    without_onnx: Merge,
    compute: Compute,
    tmp_path: Path,
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    out, onnx = tmp_path / "merged", tmp_path / "onnx"
    with pytest.raises(StageError, match=r"was trained on another model than .*other \(sha256 "):
        merge.run(other, dpo_run.out, formatted, out, onnx, without_onnx, compute)
    assert not out.exists()


def test_the_models_are_compared_on_whole_conversations(tiny_model: Path, formatted: Path) -> None:
    found, asked = merging.fixed_conversations(formatted, tiny_model)
    tokenizer = chat.load_tokenizer(tiny_model)
    assert len(found) == 4
    assert all(whole[: len(ids)] == ids for whole, ids in zip(found, asked, strict=True))
    assert tokenizer.decode(found[0]).startswith("Message: truck 20 is")
    assert found[0][-1] == tokenizer.eos_token_id
