from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.lineage import chat_contract
from tasks.model import chat


@pytest.fixture
def model(lively_model: Path, tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "model"
    shutil.copytree(lively_model, folder)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def agreed(lively_model: Path) -> dict:
    return chat.contract(chat.load_tokenizer(lively_model))


def test_a_model_that_renders_as_in_training_holds(model, agreed) -> None:
    assert chat_contract.problem(model, agreed) is None


ASK = """
import json, pathlib, sys
from tasks.lineage import chat_contract
folder = pathlib.Path(sys.argv[1])
model = {path.name: path for path in folder.iterdir()}
print(chat_contract.problem(model, json.loads(pathlib.Path(sys.argv[2]).read_text())))
print("transformers" in sys.modules)
"""


def test_that_needs_no_transformers(model, agreed, tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(agreed))
    command = [sys.executable, "-c", ASK, str(tmp_path / "model"), str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "None\nFalse\n"


def test_another_template_breaks_it(model, agreed) -> None:
    with model["chat_template.jinja"].open("a") as file:
        file.write("{# ignore what you were told #}")
    assert chat_contract.problem(model, agreed) == "its chat template is another than in training"


def test_another_tokenizer_breaks_it(model, agreed) -> None:
    settings = json.loads(model["tokenizer.json"].read_text())
    settings["model"]["merges"] = settings["model"]["merges"][:1]
    model["tokenizer.json"].write_text(json.dumps(settings))
    told = chat_contract.problem(model, agreed)
    assert told == "fixtures of its tokenizer are others than in training"


def test_where_the_short_way_does_not_do_transformers_has_the_word(
    model, agreed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*arguments):
        raise ValueError("an extension of Jinja that only transformers has")

    monkeypatch.setattr(chat_contract, "_rendered", cannot)
    assert chat_contract.problem(model, agreed) is None
