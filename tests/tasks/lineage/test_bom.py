from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.lineage import bom

FACTS = {
    "base": {
        "source": "hub",
        "pinned": {"repo": "team/model", "revision": "0" * 40},
        "outputs": {"models/base": {"md5": "0" * 32, "sha256": "b" * 64}},
    },
    "files": {"merged": {"model.safetensors": "1" * 64}, "onnx": {"sub/model.onnx": "2" * 64}},
}
MEASURED = {
    "candidates": {
        "dpo": {
            "test": {
                "exact_match": {"value": 0.9, "low": 0.8, "high": 0.95},
                "perplexity": {"value": 1.5},
            },
            "hard_test": {"exact_match": {"value": None, "low": None, "high": None}},
        }
    }
}


@pytest.fixture(scope="module")
def text() -> str:
    return bom.build(
        name="shipments-candidates",
        identity="a" * 64,
        facts=FACTS,
        measured=MEASURED,
        verdict={"candidate": "dpo"},
        lock="# comment\ntorch==2.13.0\nRuamel.yaml==0.18\n",
        base=f"team/model@{'0' * 40}",
        datasets={"data/formatted/train.jsonl": "d" * 64},
        finished=1_800_000_000_000,
    )


@pytest.fixture(scope="module")
def document(text: str) -> dict[str, Any]:
    return json.loads(text)


def test_it_holds_to_the_schema(text: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_model_is_told_with_its_files(document: dict[str, Any]) -> None:
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["version"] == "a" * 64
    assert {part["name"]: part["hashes"][0]["content"] for part in model["components"]} == {
        "merged/model.safetensors": "1" * 64,
        "onnx/sub/model.onnx": "2" * 64,
    }


def test_the_card_tells_task_data_and_numbers(document: dict[str, Any]) -> None:
    card = document["metadata"]["component"]["modelCard"]
    assert card["modelParameters"] == {
        "task": "text-generation",
        "datasets": [{"ref": "data:data/formatted/train.jsonl"}],
    }
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "exact_match",
            "slice": "test",
            "value": "0.9",
            "confidenceInterval": {"lowerBound": "0.8", "upperBound": "0.95"},
        },
        {"type": "perplexity", "slice": "test", "value": "1.5"},
    ]


def test_what_it_was_made_from_is_told(document: dict[str, Any]) -> None:
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert parts["base"]["name"] == "team/model"
    assert parts["base"]["version"] == "0" * 40
    data = parts["data:data/formatted/train.jsonl"]
    assert (data["type"], data["hashes"][0]["content"]) == ("data", "d" * 64)
    assert parts["pkg:pypi/torch@2.13.0"]["version"] == "2.13.0"
    assert "pkg:pypi/ruamel.yaml@0.18" in parts
