"""Sources of base models: what is copied, what is refused, and what cannot be reached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import chat, load, source
from tasks.params import Base, Params

COMMIT = "0123456789" * 4


@pytest.fixture
def hub(params: Params) -> Base:
    pinned = params.base.hub.model_copy(update={"repo": "owner/model", "revision": COMMIT})
    return params.base.model_copy(update={"source": "hub", "hub": pinned})


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to spoil."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_what_a_model_needs_is_copied_and_nothing_else(
    model: Path, params: Params, tmp_path: Path
) -> None:
    for name in ("README.md", "pytorch_model.bin", "modeling.py", "training_args.pt"):
        (model / name).write_text("x")
    out = tmp_path / "out"
    source.from_local(model, out)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {
        "README.md", "pytorch_model.bin", "modeling.py", "training_args.pt", "manifest.json"
    }  # fmt: skip
    assert chat.load_tokenizer(out).chat_template == chat.load_tokenizer(model).chat_template
    assert load.load_model(out).config.vocab_size == load.load_model(model).config.vocab_size


def test_a_folder_that_is_no_model(params: Params, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        source.from_local(tmp_path, tmp_path / "out")
    assert str(caught.value) == (
        f"base.local.path: {tmp_path} holds no config.json; name a folder in Hugging Face format"
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def no_number(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("model.safetensors", cut, "bytes, its head says"),
        ("model.safetensors", no_number, "1 of 64 weights of model.norm.weight are not finite"),
        ("config.json", cut, "is no sound JSON"),
        ("tokenizer.json", cut, "is no sound JSON"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[Path], None], told: str, model: Path, tmp_path: Path
) -> None:
    damage(model / name)
    with pytest.raises(StageError) as caught:
        source.from_local(model, tmp_path / "out")
    assert str(caught.value).startswith(str(model / name))
    assert told in str(caught.value)
    assert "bring" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_part_that_its_index_names_and_that_is_missing(model: Path, tmp_path: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    with pytest.raises(
        StageError, match=r"model-2\.safetensors is missing, and .*index\.json names it"
    ):
        source.from_local(model, tmp_path / "out")


def test_pickled_weights(model: Path, params: Params, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(StageError) as caught:
        source.from_local(model, tmp_path / "out")
    assert str(caught.value) == (
        f"base.local.path: {model} holds no safetensors; pickled weights are refused, convert them "
        "with save_pretrained(..., safe_serialization=True)"
    )


def test_code_that_comes_with_the_model(model: Path, params: Params, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling.py").write_text("class Model: ...\n")
    with pytest.raises(StageError) as caught:
        source.from_local(model, tmp_path / "out")
    assert str(caught.value) == (
        f"{model}/config.json asks to run Python code that comes with the model (auto_map), which "
        "is never done here; take a model that transformers knows by itself"
    )
    assert not (tmp_path / "out").exists()


def test_the_hub_is_asked_for_the_pinned_commit(
    hub: Base, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        assert not [pattern for pattern in allow_patterns if pattern.endswith((".bin", ".py", "*"))]
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source.from_hub(hub, tmp_path / "out")
    assert asked == [("owner/model", COMMIT)]
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    assert weights == (tiny_model / "model.safetensors").read_bytes()


def test_a_hub_out_of_reach_is_no_misuse(hub: Base, tmp_path: Path) -> None:
    """Tests are offline, so this one is out of reach in truth."""
    with pytest.raises(source.OutOfReach) as caught:
        source.from_hub(hub, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(
        f"base.hub.repo: owner/model at {COMMIT} cannot be downloaded ("
    )
    assert str(caught.value).endswith(
        "); check the name, the network, and `hf auth login` for gated models"
    )


def test_the_manifest_names_every_file_but_itself(model: Path) -> None:
    first = source.write_manifest(model)
    assert set(first) == {path.name for path in model.iterdir()} - {"manifest.json"}
    assert all(hashes.file_hash(model / name, "sha256") == digest for name, digest in first.items())
    before = (model / "manifest.json").read_bytes()
    assert source.write_manifest(model) == first
    assert (model / "manifest.json").read_bytes() == before


def test_saving_again_gives_the_same_bytes_and_names_no_folder(
    tiny_model: Path, tmp_path: Path
) -> None:
    before = tiny_model
    for name in ("one", "two"):
        out = tmp_path / name
        source.save(load.load_model(before), chat.load_tokenizer(before), out)
        before = out
    assert hashes.manifest(tmp_path / "one") == hashes.manifest(tmp_path / "two")
    for path in out.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(tiny_model).encode() not in content


def test_a_template_that_does_not_exist(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        source.use_template(tmp_path / "no.jinja", model)
    assert str(caught.value) == (
        f"base.chat_template: {tmp_path / 'no.jinja'} does not exist; name a Jinja file"
    )
