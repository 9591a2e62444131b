"""The base stage: what comes out loads, and is the same twice."""

import json
from pathlib import Path

import pytest

from tasks import base
from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import chat, load
from tasks.params import Base, Compute, Params


@pytest.fixture()
def small(params: Params) -> Base:
    """The scratch source at the smallest size that pretrains."""
    scratch = params.base.scratch
    pretraining = scratch.pretraining.model_copy(update={"steps": 2, "batch_size": 2})
    sizes = {"vocab_size": 320, "hidden_size": 64, "layers": 1, "heads": 1, "context": 64}
    scratch = scratch.model_copy(
        update={**sizes, "intermediate_size": 64, "text": ["a.jsonl"], "pretraining": pretraining}
    )
    return params.base.model_copy(update={"scratch": scratch})


@pytest.fixture()
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = [
        {"id": f"{n}", "text": f"the truck number {n} is late, and it rains"} for n in range(40)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "a.jsonl").write_text(text + "\nnot json\nnull\n", encoding="utf-8")
    return folder


def test_scratch_is_complete_and_the_same_twice(
    raw: Path, small: Base, compute: Compute, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        base.run(raw, tmp_path / name, small, compute)
    assert hashes.manifest(tmp_path / "one") == hashes.manifest(tmp_path / "two")

    tokenizer = chat.load_tokenizer(tmp_path / "one")
    text = "Grüße\n\t{}  42 – ok"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert load.load_model(tmp_path / "one").config.vocab_size == len(tokenizer)


def test_scratch_text_missing(raw: Path, small: Base, compute: Compute, tmp_path: Path) -> None:
    scratch = small.scratch.model_copy(update={"text": ["a.jsonl", "gone.jsonl"]})
    settings = small.model_copy(update={"scratch": scratch})
    with pytest.raises(StageError, match=r"base.scratch.text: gone.jsonl not found below"):
        base.run(raw, tmp_path / "out", settings, compute)


def local(settings: Base, path: Path) -> Base:
    place = settings.local.model_copy(update={"path": str(path)})
    return settings.model_copy(update={"source": "local", "local": place})


def test_local_folder_is_copied_with_a_manifest(
    raw: Path, small: Base, compute: Compute, tiny_model: Path, tmp_path: Path
) -> None:
    base.run(raw, tmp_path / "out", local(small, tiny_model), compute)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model.safetensors"] == hashes.file_hash(
        tiny_model / "model.safetensors", "sha256"
    )


def test_a_template_of_ones_own(
    raw: Path, small: Base, compute: Compute, tiny_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    settings = local(small, tiny_model).model_copy(update={"chat_template": str(template)})
    base.run(raw, tmp_path / "out", settings, compute)
    assert chat.load_tokenizer(tmp_path / "out").chat_template == template.read_text()


def test_pickled_weights_are_refused(
    raw: Path, small: Base, compute: Compute, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(StageError, match="holds no safetensors; pickled weights are refused"):
        base.run(raw, tmp_path / "out", local(small, folder), compute)


def test_remote_code_is_refused(
    raw: Path, small: Base, compute: Compute, tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "remote"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageError, match=r"auto_map.*never done here"):
        base.run(raw, tmp_path / "out", local(small, folder), compute)


def test_gguf_package_missing(raw: Path, small: Base, compute: Compute, tmp_path: Path) -> None:
    gguf = small.gguf.model_copy(update={"package": "no_such_gguf"})
    settings = small.model_copy(update={"source": "gguf", "gguf": gguf})
    with pytest.raises(StageError, match="no_such_gguf is not installed"):
        base.run(raw, tmp_path / "out", settings, compute)


def test_gguf_file_missing(raw: Path, small: Base, compute: Compute, tmp_path: Path) -> None:
    gguf = small.gguf.model_copy(update={"path": str(tmp_path / "no.gguf")})
    settings = small.model_copy(update={"source": "gguf", "gguf": gguf})
    with pytest.raises(StageError, match=r"base.gguf.path: .*no.gguf does not exist"):
        base.run(raw, tmp_path / "out", settings, compute)
