"""The evaluate stage, from model folders to verdict."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from prepared_data import contamination, write_metrics, write_plots

from tasks import evaluate
from tasks.evaluation.rows import SPLITS
from tasks.lineage.console import log
from tasks.lineage.hashes import manifest
from tasks.lineage.stage import StageError
from tasks.model import adapter, engines
from tasks.params import Compute, Evaluate, Params

CANDIDATES = ["base", "cpt", "sft", "dpo"]
TEST_ROWS, REGRESSION_ROWS = 8, 3


def chat(number: int, answer: str) -> dict[str, Any]:
    turns = [("system", "Answer with JSON."), ("user", f"truck {number} is late")]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", answer)]]
    return {"id": str(number), "source": "s.jsonl", "messages": messages}


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "formatted"
    folder.mkdir()
    test = [chat(n, json.dumps({"category": "ab"[n % 2]})) for n in range(TEST_ROWS)]
    regression = [chat(n, "four") for n in range(REGRESSION_ROWS + 2)]
    rows = dict(zip(SPLITS, (test, test[:3], regression), strict=True))
    for split, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{split}.jsonl").write_text(text)
    stated = contamination({split: len(found) for split, found in rows.items()}, {"test": 2})
    (folder / "contamination.json").write_text(json.dumps(stated))
    write_plots(folder)
    return folder


@pytest.fixture()
def rest(
    data: Path, curves: Path, settings: Evaluate, compute: Compute, tmp_path: Path
) -> dict[str, Any]:
    """What `run` takes beside models and outputs."""
    counted = write_metrics(tmp_path)
    return {
        "data": data,
        **{f"{stage}_metrics": path for stage, path in counted.items()},
        "curves": curves,
        "evaluate": settings,
        "compute": compute,
    }


@pytest.fixture()
def curves(tmp_path: Path) -> Path:
    folder = tmp_path / "curves"
    folder.mkdir()
    for name in ("cpt", "sft", "dpo"):
        (folder / f"{name}.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    return folder


@pytest.fixture(scope="module")
def models(lively_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base differs from cpt; sft has no adapter, so it is cpt again; merged is the lively model."""
    import torch

    from tasks.model import chat, load, source

    folder = tmp_path_factory.mktemp("candidates")
    for seed, name in enumerate(("base", "cpt")):
        model = load.load_model(lively_model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.05)
        source.save(model, chat.load_tokenizer(lively_model), folder / name)
    adapter.write_none(folder / "cpt", folder / "sft")
    (folder / "no-onnx").mkdir()
    return {
        "base": folder / "base",
        "cpt": folder / "cpt",
        "sft": folder / "sft",
        "merged": lively_model,
        "onnx": folder / "no-onnx",
    }


@pytest.fixture()
def settings(params: Params) -> Evaluate:
    return params.evaluate.model_copy(
        update={
            "max_new_tokens": 6,
            "regression_rows": REGRESSION_ROWS,
            "gates": {"json_valid": 0.0, "category_accuracy": 0.9},
        }
    )


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "seed", lambda compute: None)  # changes the whole process
    monkeypatch.setattr(log, "propagate", True)  # off where another test has set up the console


def run(folder: Path, models: dict[str, Path], **others: Any) -> dict[str, Any]:
    folder.mkdir()
    metrics = evaluate.run(
        **models, report=folder / "report", verdict=folder / "verdict.json", **others
    )
    json.dumps(metrics, allow_nan=False)
    assert sorted(path.name for path in folder.iterdir()) == ["report", "verdict.json"]
    return dict(metrics)


def test_transformers_alone(
    models: dict[str, Path],
    rest: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "tunetrail"):
        metrics = run(tmp_path / "one", models, **rest)
    assert run(tmp_path / "two", models, **rest) == metrics
    assert manifest(tmp_path / "one") == manifest(tmp_path / "two")

    assert list(metrics) == CANDIDATES
    for splits in metrics.values():
        assert list(splits) == ["test", "hard_test", "regression"]
        assert list(splits["test"]) == [
            "category_accuracy",
            "json_valid",
            "exact_match",
            "perplexity",
            "contaminated_share",
        ]
        assert list(splits["regression"]) == [
            "json_valid",
            "exact_match",
            "perplexity",
            "contaminated_share",
        ]
        shares = [estimates.pop("contaminated_share") for estimates in splits.values()]
        assert [share["value"] for share in shares] == [2 / TEST_ROWS, None, None]
        for estimates in splits.values():
            for estimate in estimates.values():
                assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert metrics["cpt"] == metrics["sft"]
    assert metrics["base"] != metrics["cpt"] != metrics["dpo"]
    assert "cpt is the same model as sft, whose answers count for it" in caplog.text
    assert "gate category_accuracy: 0 is below 0.9" in caplog.text

    verdict = json.loads((tmp_path / "one" / "verdict.json").read_text())
    assert (verdict["candidate"], verdict["verdict"]) == ("dpo", "fail")
    assert [gate["passed"] for gate in verdict["gates"]] == [True, False]
    assert verdict["contaminated_share"]["value"] == 2 / TEST_ROWS
    predictions = (tmp_path / "one" / "report" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == TEST_ROWS + REGRESSION_ROWS
    assert sum(json.loads(line)["hard"] for line in predictions) == 3


def test_exported_models_answer_as_the_trained_ones(
    models: dict[str, Path],
    exported: Path,
    rest: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "tunetrail"):
        served = run(tmp_path / "onnx", {**models, "onnx": exported}, **rest)
    assert "exporting base, sft to ONNX" in caplog.text
    assert "models/onnx answers as models/merged does, token by token" in caplog.text
    assert served == run(tmp_path / "torch", models, **rest)
    assert manifest(tmp_path / "onnx") == manifest(tmp_path / "torch")


def test_an_export_of_another_model_is_noticed(
    models: dict[str, Path],
    exported: Path,
    settings: Evaluate,
    compute: Compute,
    data: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tasks.evaluation import candidates, rows
    from tasks.model.chat import load_tokenizer

    found = rows.read(data, REGRESSION_ROWS)
    prepared = candidates.prepare(found, load_tokenizer(exported))
    served = engines.OnnxEngine(exported, 1).generate(prepared.prompts, 6, lambda done: None)
    with caplog.at_level(logging.INFO, "tunetrail"):
        evaluate._compare_served(models["cpt"], served, prepared, settings, compute)
    assert "models/onnx answers only " in caplog.text
    assert "see merge.onnx_precision" in caplog.text


def test_weights_that_are_not_numbers(
    models: dict[str, Path],
    rest: dict[str, Any],
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(models["merged"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"dpo gives .* a likelihood of nan: its weights hold NaN"):
        run(
            tmp_path / "out",
            {**models, "merged": broken},
            **rest,
        )


def test_an_empty_test_stops_before_any_model_is_loaded(
    models: dict[str, Path],
    rest: dict[str, Any],
    tmp_path: Path,
) -> None:
    (rest["data"] / "test.jsonl").write_text("")
    nowhere = dict.fromkeys(models, tmp_path / "nowhere")
    with pytest.raises(StageError, match=r"test.jsonl has 0 rows, and a verdict needs a test"):
        run(
            tmp_path / "out",
            nowhere,
            **rest,
        )


def test_no_score_without_contamination(
    models: dict[str, Path], rest: dict[str, Any], tmp_path: Path
) -> None:
    (rest["data"] / "contamination.json").unlink()
    nowhere = dict.fromkeys(models, tmp_path / "nowhere")
    with pytest.raises(StageError, match=r"contamination.json does not exist, and no score stands"):
        run(tmp_path / "out", nowhere, **rest)
