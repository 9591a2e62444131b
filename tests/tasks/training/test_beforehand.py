"""Bad input of a training stage: told before a model is loaded, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import Trained, chats, pairs, write_rows

from tasks import cpt, dpo, sft
from tasks.lineage.stage import StageError
from tasks.model import load, source
from tasks.params import Compute, Cpt, Dpo, Sft
from tasks.training import beforehand

pytest_plugins = ("small_runs",)


@pytest.fixture(autouse=True)
def nothing_is_loaded(sft_run: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that comes after the loading is none."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(load, "load_model", refuse)
    monkeypatch.setattr(load, "load_quantised", refuse)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


Run = Callable[[Path, Path], object]


@pytest.fixture
def stages(
    sft_run: Trained,
    cpt_settings: Cpt,
    sft_settings: Sft,
    dpo_settings: Dpo,
    compute: Compute,
    tmp_path: Path,
) -> dict[str, Run]:
    """Each training stage as a function of model and data."""
    out, curve = tmp_path / "out", tmp_path / "curve.csv"
    return {
        "cpt": lambda model, data: cpt.run(
            model, data / "corpus.jsonl", out, curve, cpt_settings, compute
        ),
        "sft": lambda model, data: sft.run(model, data, out, curve, sft_settings, compute),
        "dpo": lambda model, data: dpo.run(
            model, sft_run.out, data, out, curve, dpo_settings, compute
        ),
    }


@pytest.mark.parametrize("stage", ["cpt", "sft", "dpo"])
def test_a_flipped_bit_in_the_base(
    stage: str, stages: dict[str, Run], model: Path, formatted: Path, tmp_path: Path
) -> None:
    flip(model / "model.safetensors")
    with pytest.raises(beforehand.Corrupt) as caught:
        stages[stage](model, formatted)
    assert str(caught.value).startswith(f"{model}/model.safetensors has sha256 ")
    assert f"delete {model} and bring it again with `dvc checkout {model}`" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["cpt", "sft", "dpo"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers(
    value: float, stage: str, stages: dict[str, Run], model: Path, formatted: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    file = model / "model.safetensors"
    weights = load_file(file)
    wrong = weights["model.layers.1.mlp.up_proj.weight"]
    wrong[3, :2] = value
    save_file(weights, file, metadata={"format": "pt"})
    source.write_manifest(model)
    with pytest.raises(StageError) as caught:
        stages[stage](model, formatted)
    assert str(caught.value).startswith(
        f"{file}: 2 of {wrong.numel():,} weights of model.layers.1.mlp.up_proj.weight are not finite"
    )
    assert not (tmp_path / "out").exists()


def test_weights_of_eight_bits_are_looked_at_too(model: Path) -> None:
    import torch
    from safetensors.torch import save_file

    small = torch.ones(4).to(torch.float8_e4m3fn)
    save_file({"small": small, "count": torch.tensor([1])}, model / "more.safetensors")
    source.write_manifest(model)
    beforehand.check_model(model)
    small.view(torch.uint8)[1] = 0x7F  # nan
    save_file({"small": small}, model / "more.safetensors")
    source.write_manifest(model)
    with pytest.raises(StageError, match=r"more\.safetensors: 1 of 4 weights of small are not"):
        beforehand.check_model(model)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda at: (at / "config.json").unlink(), "config.json is missing: it was changed"),
        (lambda at: (at / "more.txt").write_text("1"), "more.txt is not in manifest.json"),
        (lambda at: (at / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    ],
)
def test_other_damage(damage: Callable[[Path], object], told: str, model: Path) -> None:
    damage(model)
    with pytest.raises(beforehand.Corrupt, match=told):
        beforehand.check_model(model)


def short(model: Path, context: int) -> Path:
    file = model / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"max_position_embeddings": context}))
    source.write_manifest(model)
    return model


def test_a_row_longer_than_the_context(
    stages: dict[str, Run], model: Path, formatted: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(formatted, tmp_path / "data"))
    rows = chats(4)
    rows[2]["id"] = "S-7"
    rows[2]["messages"][0]["content"] *= 5
    write_rows(data / "train.jsonl", rows)
    with pytest.raises(StageError) as caught:
        stages["sft"](short(model, 128), data)
    told = str(caught.value)
    assert told.startswith(f"{data}/train.jsonl: row S-7 has ")
    assert f"1 of 4 rows have more than the 128 that {model} was made for" in told
    assert "set format.max_tokens to 128 at most" in told
    assert not (tmp_path / "out").exists()


def test_a_pair_longer_than_the_context(
    stages: dict[str, Run], tiny_model: Path, formatted: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(formatted, tmp_path / "data"))
    rows = pairs(3)
    rows[1]["rejected"] *= 40
    write_rows(data / "preferences.jsonl", rows)
    with pytest.raises(StageError, match=r"preferences\.jsonl: row 1 has \d+ tokens, and 1 of 3"):
        stages["dpo"](tiny_model, data)


def test_a_block_longer_than_the_context(
    stages: dict[str, Run], model: Path, formatted: Path
) -> None:
    with pytest.raises(StageError, match=r"^cpt\.block_tokens: is 32, more than the 16 tokens"):
        stages["cpt"](short(model, 16), formatted)


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("cpt", "corpus"),
        ("sft", "train"),
        ("sft", "validation"),
        ("dpo", "preferences"),
        ("dpo", "preferences_validation"),
    ],
)
def test_an_empty_split(
    stage: str, file: str, stages: dict[str, Run], tiny_model: Path, formatted: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(formatted, tmp_path / "data"))
    (data / f"{file}.jsonl").write_text("")
    with pytest.raises(StageError, match=rf"{file}\.jsonl holds no rows; see models/format"):
        stages[stage](tiny_model, data)
    assert not (tmp_path / "out").exists()


def test_a_target_module_that_the_model_lacks(
    tiny_model: Path, formatted: Path, sft_settings: Sft, compute: Compute, tmp_path: Path
) -> None:
    wrong = sft_settings.model_copy(update={"target_modules": ["q_proj", "c_attn"]})
    with pytest.raises(StageError) as caught:
        sft.run(tiny_model, formatted, tmp_path / "o", tmp_path / "c.csv", wrong, compute)
    assert str(caught.value) == (
        "sft.target_modules: c_attn not in this model; it has down_proj, embed_tokens, gate_proj, "
        "k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_an_adapter_on_embeddings_that_are_the_output_layer_too(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = model / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "lm_head" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(
        StageError, match=r"^cpt\.lora\.target_modules: embed_tokens shares its weigh"
    ):
        beforehand.check_targets(model, ["q_proj", "embed_tokens"], "cpt.lora.target_modules")


def test_an_adapter_for_another_base(
    stages: dict[str, Run], model: Path, formatted: Path, tmp_path: Path
) -> None:
    flip(model / "model.safetensors")
    source.write_manifest(model)
    with pytest.raises(
        StageError, match=r"was trained on another model than .* run `dvc repro sft`"
    ):
        stages["dpo"](model, formatted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"\x05", "is no sound safetensors file"), (b"\xff" * 20, "its head is cut off")],
)
def test_a_file_that_is_no_safetensors(model: Path, content: bytes, told: str) -> None:
    from tasks.model import shapes

    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(StageError, match=told):
        shapes.tensors(model)


def test_a_file_that_is_cut_off(model: Path) -> None:
    from tasks.model import shapes

    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(StageError, match=r"model\.safetensors has [\d,]+ bytes, its head says"):
        shapes.tensors(model)
