"""Continued pretraining: a complete model comes out, the same twice, or the base unchanged."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from small_runs import machine_names, write_rows

from tasks import cpt
from tasks.lineage import hashes
from tasks.lineage.stage import StageError
from tasks.model import chat, load
from tasks.params import Compute, Cpt

pytest_plugins = ("small_runs",)


def test_a_complete_model_comes_out_and_the_same_twice(
    tiny_model: Path, formatted: Path, cpt_settings: Cpt, compute: Compute, tmp_path: Path
) -> None:
    found = []
    for name in ("one", "two"):
        out, curve = tmp_path / name / "cpt", tmp_path / name / "curves/cpt.csv"
        metrics = cpt.run(tiny_model, formatted / "corpus.jsonl", out, curve, cpt_settings, compute)
        found.append((hashes.manifest(tmp_path / name), metrics))
    assert found[0] == found[1]

    out = tmp_path / "one/cpt"
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= {
        path.name for path in out.iterdir()
    }
    template = chat.load_tokenizer(tiny_model).chat_template
    assert chat.load_tokenizer(out).chat_template == template
    assert load.load_model(out).config.vocab_size == load.load_model(tiny_model).config.vocab_size
    weights = [hashes.file_hash(path / "model.safetensors", "sha256") for path in (tiny_model, out)]
    assert weights[0] != weights[1]
    assert machine_names(tmp_path / "one", tmp_path, tiny_model) == []

    with (tmp_path / "one/curves/cpt.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    metrics = found[0][1]
    assert list(rows[0])[:2] == ["step", "loss"]
    assert [int(row["step"]) for row in rows] == list(range(1, metrics["steps"] + 1))
    assert float(rows[0]["loss"]) == metrics["loss_first"] > metrics["loss_last"]
    assert math.isclose(metrics["loss_first"], math.log(400), rel_tol=0.05)  # tokens of the model
    assert (metrics["texts"], metrics["texts_held_out"]) == (7, 1)
    validated = {int(row["step"]): row["validation_loss"] for row in rows if row["validation_loss"]}
    assert float(validated[metrics["best_step"]]) == metrics["validation_loss"]
    assert metrics["validation_loss"] == min(map(float, validated.values()))
    assert metrics["steps"] == math.ceil(metrics["tokens"] / 32 / 4)  # blocks of 32, 4 a step


def test_switched_off_hands_the_base_on(
    tiny_model: Path, formatted: Path, cpt_settings: Cpt, compute: Compute, tmp_path: Path
) -> None:
    off = cpt_settings.model_copy(update={"enabled": False})
    out, curve = tmp_path / "cpt", tmp_path / "curves/cpt.csv"
    assert cpt.run(tiny_model, formatted / "corpus.jsonl", out, curve, off, compute) == {
        "enabled": 0
    }
    assert hashes.manifest(out) == hashes.manifest(tiny_model)
    assert curve.read_text() == "step,loss,validation_loss\n"


def test_without_validation_every_text_is_trained_on(
    tiny_model: Path, formatted: Path, cpt_settings: Cpt, compute: Compute, tmp_path: Path
) -> None:
    whole = cpt_settings.model_copy(update={"validation_share": 0.0})
    metrics = cpt.run(
        tiny_model, formatted / "corpus.jsonl", tmp_path / "o", tmp_path / "c.csv", whole, compute
    )
    assert (metrics["texts"], metrics["texts_held_out"]) == (8, 0)
    assert "validation_loss" not in metrics


def test_texts_are_held_out_whole_and_in_order() -> None:
    train, held_out = cpt.split(range(40), 0.1, seed=3)
    assert sorted([*train, *held_out]) == list(range(40))
    assert (train, held_out) == (sorted(train), sorted(held_out))
    assert len(held_out) == 4
    assert cpt.split(range(40), 0.1, seed=3)[1] == held_out != cpt.split(range(40), 0.1, seed=4)[1]
    with pytest.raises(StageError, match=r"^cpt\.validation_share: 0\.9 of 2 texts leaves none to"):
        cpt.split(range(2), 0.9, seed=3)


def test_no_text_is_refused(
    tiny_model: Path, cpt_settings: Cpt, compute: Compute, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    write_rows(corpus, [])
    with pytest.raises(
        StageError, match=r"corpus\.jsonl holds no rows; see models/format\.metrics"
    ):
        cpt.run(tiny_model, corpus, tmp_path / "out", tmp_path / "c.csv", cpt_settings, compute)
    assert not (tmp_path / "out").exists()
