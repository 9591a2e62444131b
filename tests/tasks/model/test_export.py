"""ONNX export: the same bytes from any run, nothing of this machine in them, and clear faults."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tasks.lineage.hashes import manifest
from tasks.lineage.stage import StageError
from tasks.model import export


def test_exporting_again_gives_the_same_bytes(
    lively_model: Path, exported: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(lively_model, tmp_path / "another name")
    export.export_onnx([(elsewhere, tmp_path / "a"), (elsewhere, tmp_path / "b")], "fp32")
    assert manifest(tmp_path / "a") == manifest(exported)
    assert manifest(tmp_path / "b") == manifest(exported)


def test_what_is_written(lively_model: Path, exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert {"genai_config.json", "model.onnx", "model.onnx.data"} <= names
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (exported / name).read_bytes() == (lively_model / name).read_bytes()


def test_no_folder_of_this_machine_is_named(lively_model: Path, exported: Path) -> None:
    places = [str(lively_model.parent), str(exported.parent), str(Path.cwd()), str(Path.home())]
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not [place for place in places if place.encode() in content], path.name


def test_precision_is_read_from_the_export(exported: Path, tmp_path: Path) -> None:
    assert export.exported_precision(exported) == "fp32"
    (tmp_path / "model.onnx").write_bytes(b"...MatMulNBits...")
    assert export.exported_precision(tmp_path) == "int4"


def test_no_jobs_start_no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.sys, "executable", "/does/not/exist")
    export.export_onnx([], "fp32")


def test_a_builder_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tmp_path / "python"
    builder.write_text("#!/bin/sh\nseq 100\necho The model is not supported.\nexit 3\n")
    builder.chmod(builder.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(export.sys, "executable", str(builder))
    with pytest.raises(StageError) as caught:
        export.export_onnx([(tmp_path / "merged", tmp_path / "onnx")], "fp32")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'merged'} cannot be exported to ONNX")
    assert "exited with 3; set merge.onnx to false in params.yaml" in text
    assert text.endswith("The model is not supported.")
    assert len(text.splitlines()) == 16


class RopeSettings:
    """As much of a config as the flattening looks at."""

    def __init__(self, model_type: str, rope_parameters: object) -> None:
        self.model_type = model_type
        self.rope_parameters = rope_parameters


def test_gemma_3_rotary_settings_are_flattened() -> None:
    whole = {"rope_type": "default", "rope_theta": 1e6}
    local = {"rope_type": "default", "rope_theta": 1e4}
    config = RopeSettings("gemma3_text", {"full_attention": whole, "sliding_attention": local})
    export._flatten_rope(config)
    assert config.rope_parameters == whole
    assert config.rope_local_base_freq == 1e4


@pytest.mark.parametrize("rope", [None, {"rope_type": "default", "rope_theta": 1e4}])
def test_other_rotary_settings_are_left_alone(rope: object) -> None:
    config = RopeSettings("llama", rope)
    export._flatten_rope(config)
    assert config.rope_parameters == rope
    assert not hasattr(config, "rope_local_base_freq")


def test_the_export_does_not_know_the_commit_of_this_folder(exported: Path, root: Path) -> None:
    """onnxruntime-genai writes it into the model, where it finds one; two clones would differ."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, check=True
    ).stdout.strip()
    assert len(commit) == 40
    for path in sorted(exported.iterdir()):
        assert commit not in path.read_bytes(), path.name
