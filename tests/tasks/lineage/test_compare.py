from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.lineage import compare
from tasks.lineage.compare import Distance


def distance(before: Path, after: Path) -> Distance:
    found = Distance()
    compare.outputs(before, after, "out", found)
    return found


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders."""
    folders = (tmp_path / "before", tmp_path / "after")
    for folder in folders:
        folder.mkdir()
    return folders


def write(pair: tuple[Path, Path], name: str, before: str, after: str) -> Distance:
    for folder, text in zip(pair, (before, after), strict=True):
        (folder / name).write_text(text)
    return distance(*pair)


def tensors(pair: tuple[Path, Path], before: dict, after: dict) -> Distance:
    for folder, content in zip(pair, (before, after), strict=True):
        arrays = {name: np.array(values) for name, values in content.items()}
        save_file(arrays, folder / "model.safetensors")
    return distance(*pair)


def test_the_largest_difference_of_weights(pair) -> None:
    found = tensors(pair, {"a": [1.0, 2.0], "b": [0.0, 0.0]}, {"a": [1.0, 2.5], "b": [0.0, -0.25]})
    assert found.weights.absolute == 0.5
    assert found.weights.where == "out/model.safetensors: a"
    assert found.weights.relative == 1.0  # from zero, everything is as far as can be
    assert found.within(0.5)
    assert not found.within(0.4)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"a": [1.0]}, {"b": [1.0]}, "has other tensors"),
        ({"a": [1.0]}, {"a": [1.0, 2.0]}, "has other tensors"),
        ({"a": [1]}, {"a": [2]}, "a holds whole numbers, and others than before"),
        ({"a": [1.0]}, {"a": [float("nan")]}, "a is not finite everywhere"),
    ],
)
def test_weights_that_cannot_be_close(pair, before, after, why) -> None:
    found = tensors(pair, before, after)
    assert len(found.unequal) == 1
    assert found.unequal[0].endswith(why)
    assert not found.within(1e9)


def test_a_damaged_file_of_weights(pair) -> None:
    found = write(pair, "model.safetensors", "nonsense", "other nonsense")
    assert found.unequal[0].startswith("out/model.safetensors cannot be read: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", '{{"dpo": {{"test": [{0}, null, "x"]}}}}'),
        ("curve.csv", "step,loss\n0,{0}\n"),
        ("rows.jsonl", '{{"loss": {0}}}\n'),
    ],
)
def test_numbers_in_texts(pair, name: str, text: str) -> None:
    found = write(pair, name, text.format(0.5), text.format(0.75))
    assert (found.metrics.absolute, found.unequal) == (0.25, [])
    assert found.metrics.relative == pytest.approx(1 / 3)
    assert found.metrics.where.startswith(f"out/{name}")


def test_words_are_not_close(pair) -> None:
    found = write(pair, "answers.json", '{"answer": "yes"}', '{"answer": "no"}')
    assert found.unequal == ['out/answers.json: answer: was "yes", is "no"']


@pytest.mark.parametrize(("before", "after"), [("[1]", "[1, 2]"), ("true", "1"), ('{"a": 1}', "1")])
def test_other_shapes_are_not_close(pair, before: str, after: str) -> None:
    assert write(pair, "metrics.json", before, after).unequal


def test_hashes_follow_what_they_are_of(pair) -> None:
    texts = [json.dumps({"model.safetensors": digit * 64}) for digit in "ab"]
    found = write(pair, "manifest.json", *texts)
    assert found.within(0)


def test_pictures_are_named_and_not_compared(pair) -> None:
    found = write(pair, "index.html", "<p>0.5", "<p>0.6")
    assert (found.pictures, found.within(0)) == (["out/index.html"], True)


def test_a_file_more_or_less(pair) -> None:
    (pair[0] / "old").touch()
    (pair[1] / "new").touch()
    assert distance(*pair).unequal == [
        "out/new was not written before",
        "out/old is no longer written",
    ]


def test_onnx_weights(pair) -> None:
    import onnx
    from onnx import TensorProto, helper

    def save(folder: Path, weight: float, name: str = "y") -> None:
        tensor = helper.make_tensor("w", TensorProto.FLOAT, [400], [weight] * 400)
        node = helper.make_node("Add", ["x", "w"], [name])
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [400]) for n in ("x", name))
        model = helper.make_model(helper.make_graph([node], "g", [x], [y], [tensor]))
        onnx.save_model(
            model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data"
        )

    save(pair[0], 1.0)
    save(pair[1], 1.5)
    found = distance(*pair)
    assert (found.weights.absolute, found.unequal) == (0.5, [])
    for path in pair[1].iterdir():
        path.unlink()
    save(pair[1], 1.0, "z")
    assert distance(*pair).unequal == ["out/model.onnx has another graph"]


def test_what_went_in_and_differs() -> None:
    before = {
        "inputs": {"tasks/sft.py": "1", "data/raw": "2", "requirements.lock": "3", "same": "4"},
        "params": {"sft": {"epochs": 1, "deep": {"rate": 0.5}}},
    }
    after = {
        "inputs": {"tasks/sft.py": "x", "data/raw": "y", "requirements.lock": "z", "same": "4"},
        "params": {"sft": {"epochs": 1, "deep": {"rate": 0.25}}},
    }
    assert compare.inputs(before, after) == [
        "data data/raw: was 2, is y",
        "lock requirements.lock: was 3, is z",
        "code tasks/sft.py: was 1, is x",
        "params sft.deep.rate: was 0.5, is 0.25",
    ]
    assert compare.inputs(before, before) == []


def test_what_a_stage_chose_otherwise_is_named_with_its_machine() -> None:
    went_in = {"inputs": {}, "params": {}}
    cpu = {"device": "cpu", "bfloat16": False}
    before = {**went_in, "machine": cpu, "resolved": {"dtype": "float32", "pass_tokens": None}}
    gpu = {"device": "NVIDIA H200", "bfloat16": True}
    after = {**went_in, "machine": gpu, "resolved": {"dtype": "bfloat16", "pass_tokens": None}}
    assert compare.inputs(before, after) == [
        "machine bfloat16: was False, is True",
        "machine device: was 'cpu', is 'NVIDIA H200'",
        "resolved dtype: was 'float32', is 'bfloat16'",
    ]
    assert compare.inputs(before, before) == []
    assert compare.inputs(before, went_in) == []  # of before it ran here


def test_machines_are_compared_by_what_was_recorded() -> None:
    before = {"cpu": {"model": "A"}, "libraries": {"torch": "2.13.0"}}
    after = {"cpu": {"model": "B", "count": 2}, "libraries": {"torch": "2.13.0"}}
    assert compare.facts(before, after) == ["machine cpu.model: was 'A', is 'B'"]
