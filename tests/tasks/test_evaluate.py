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
from tasks.evaluation.candidates import Answers
from tasks.evaluation.rows import SPLITS
from tasks.lineage import champion
from tasks.lineage.console import log
from tasks.lineage.hashes import manifest
from tasks.lineage.stage import StageError
from tasks.model import adapter
from tasks.model.export import export_onnx
from tasks.params import Compute, Evaluate, Gates, Params, Retrieval

CANDIDATES = ["base", "base_few_shot", "base_retrieval", "classical", "cpt", "sft", "dpo"]
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
    solved = [chat(n, json.dumps({"category": "ab"[n % 2]})) for n in range(100, 112)]
    for split, found in (("train", solved[:9]), ("validation", solved[9:])):
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{split}.jsonl").write_text(text)
    (folder / "corpus.jsonl").write_text(json.dumps({"text": "Trucks\n\ntruck 3 is late"}) + "\n")
    return folder


@pytest.fixture()
def rest(
    data: Path,
    curves: Path,
    settings: Evaluate,
    params: Params,
    compute: Compute,
    models: dict[str, Path],
    tmp_path: Path,
) -> dict[str, Any]:
    """What `run` takes beside models and outputs."""
    counted = write_metrics(tmp_path)
    records = tmp_path / "records"
    write_record(records, models["merged"])
    return {
        "data": data,
        "corpus": data / "corpus.jsonl",
        **{f"{stage}_metrics": path for stage, path in counted.items()},
        "curves": curves,
        "records": records,
        "evaluate": settings,
        "validate": params.validate_.model_copy(update={"answer_schema": None}),
        "compute": compute,
    }


def write_record(records: Path, merged: Path) -> None:
    """What the stage runner records of the stage that made the model."""
    output = {"md5": "0" * 32, "sha256": "0" * 64}
    made = {"stage": "merge", "params": {}, "inputs": {}, "outputs": {merged.as_posix(): output}}
    records.mkdir(exist_ok=True)
    (records / "merge.json").write_text(json.dumps(made))


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
    against = {"require": "not_worse", "margin": 1.0}
    gates = {
        "metrics": {"json_valid": 0.0, "category_accuracy": 0.9},
        "simpler": against,
        "champion": against,
        "forgetting": {"max_perplexity_ratio": 1e9, "max_following_drop": None},
    }
    return params.evaluate.model_copy(
        update={
            "engine": "transformers",
            "max_new_tokens": 6,
            "regression_rows": REGRESSION_ROWS,
            "prompts": [None, "Say it in JSON: {question}"],
            "few_shot": 2,
            "retrieval": Retrieval.model_validate({"rows": 1, "from": "train"}),
            "gates": Gates.model_validate(gates),
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
    written: dict[str, Any] = json.loads(json.dumps(metrics, allow_nan=False))
    assert sorted(path.name for path in folder.iterdir()) == ["report", "verdict.json"]
    return written


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

    assert (metrics["task"], metrics["primary"]) == ("structured", "exact_match")
    assert (metrics["final"], metrics["left_out"]) == ("dpo", {})
    measured = metrics["candidates"]
    assert list(measured) == CANDIDATES
    for name, splits in measured.items():
        assert list(splits) == ["test", "hard_test", "regression"]
        shares = [found.pop("contaminated_share", None) for found in splits.values()]
        assert shares[0]["value"] == 2 / TEST_ROWS
        asked = ["category_accuracy", "json_valid", "exact_match"]
        test_only = name in ("base_few_shot", "base_retrieval", "classical")
        assert list(splits["test"]) == asked if test_only else [*asked, "perplexity"]
        assert (splits["regression"] == {}) == test_only
        for estimates in splits.values():
            for estimate in estimates.values():
                assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert list(measured["dpo"]["regression"])[-1] == "perplexity"
    assert measured["cpt"] == measured["sft"]
    assert measured["base"] != measured["cpt"] != measured["dpo"]
    assert measured["classical"]["test"]["exact_match"]["value"] == 0.5  # numbers tell nothing
    simpler = metrics["comparisons"]["simpler"]
    assert (simpler["left"], simpler["right"], simpler["rows"]) == ("dpo", "classical", TEST_ROWS)
    assert metrics["comparisons"]["champion"] is None
    assert metrics["forgetting"]["rows"] == REGRESSION_ROWS
    assert "cpt and sft are one model, which is asked once" in caplog.text
    assert "gate metric category_accuracy: 0 is below 0.9" in caplog.text

    verdict = json.loads((tmp_path / "one" / "verdict.json").read_text())
    assert (verdict["candidate"], verdict["verdict"]) == ("dpo", "fail")
    assert [gate["passed"] for gate in verdict["gates"]] == [True, False, True, True]
    assert verdict["contaminated_share"]["value"] == 2 / TEST_ROWS
    report = tmp_path / "one" / "report"
    predictions = [json.loads(line) for line in (report / "predictions.jsonl").open()]
    assert len(predictions) == TEST_ROWS + REGRESSION_ROWS
    assert sum(row["hard"] for row in predictions) == 3
    assert list(predictions[0]["answers"]) == CANDIDATES
    assert list(predictions[-1]["answers"]) == ["base", "cpt", "sft", "dpo"]
    assert isinstance(json.loads((report / "slices.json").read_text()), list)


def test_exported_models_answer_as_the_trained_ones(
    models: dict[str, Path],
    exported: Path,
    rest: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch_alone = run(tmp_path / "torch", models, **rest)
    rest["evaluate"] = rest["evaluate"].model_copy(update={"engine": "onnx"})
    with caplog.at_level(logging.INFO, "tunetrail"):
        served = run(tmp_path / "onnx", {**models, "onnx": exported}, **rest)
    assert "exporting base to ONNX" in caplog.text
    assert "exporting sft to ONNX" in caplog.text  # cpt is the same
    assert "exporting cpt to ONNX" not in caplog.text
    assert "the engine onnx answers as the model was trained, token by token" in caplog.text
    assert served == torch_alone
    assert manifest(tmp_path / "onnx") == manifest(tmp_path / "torch")


def test_a_champion_is_compared(
    models: dict[str, Path],
    rest: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "champions" / "f"
    shutil.copytree(models["merged"], place / "merged")
    monkeypatch.setattr(champion, "bring", lambda identity: champion.Champion(place))
    rest["evaluate"] = rest["evaluate"].model_copy(update={"champion": "f" * 64})
    metrics = run(tmp_path / "out", models, **rest)
    assert list(metrics["candidates"])[4] == "champion"
    assert metrics["candidates"]["champion"] == metrics["candidates"]["dpo"]
    compared = metrics["comparisons"]["champion"]
    assert (compared["right"], compared["says"]) == ("champion", "inside the noise")
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert [gate["gate"] for gate in verdict["gates"]].count("champion") == 1


def test_a_champion_of_the_same_weights_is_asked_with_its_own_export(
    models: dict[str, Path],
    exported: Path,
    rest: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "champions" / "f"
    shutil.copytree(models["merged"], place / "merged")
    export_onnx([(models["cpt"], place / "onnx")], "int4")
    monkeypatch.setattr(champion, "bring", lambda identity: champion.Champion(place))
    rest["evaluate"] = rest["evaluate"].model_copy(
        update={"champion": "f" * 64, "engine": "onnx", "few_shot": 0, "prompts": [None]}
    )
    alike = dict.fromkeys(("base", "cpt"), models["merged"])
    adapter.write_none(models["merged"], tmp_path / "sft")
    with caplog.at_level(logging.INFO, "tunetrail"):
        run(
            tmp_path / "out", {**models, **alike, "sft": tmp_path / "sft", "onnx": exported}, **rest
        )
    assert "exporting" not in caplog.text
    assert "base and cpt and sft and dpo are one model, which is asked once" in caplog.text
    lines = (tmp_path / "out/report/predictions.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answers"] for line in lines]
    assert any(row["champion"] != row["dpo"] for row in answers)


def test_a_champion_that_cannot_be_had_stops_before_anything_is_computed(
    models: dict[str, Path], rest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    rest["evaluate"] = rest["evaluate"].model_copy(update={"champion": "f" * 64})
    with pytest.raises(StageError, match=r"evaluate.champion is f{64}, whose model cannot be had"):
        run(tmp_path / "out", models, **rest)


def test_methods_that_are_off_or_cannot_be(
    models: dict[str, Path],
    rest: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One class only, no documents, answers of general rows that nobody asks for."""
    for split in ("train", "validation"):
        rows = [chat(n, '{"category": "a"}') for n in range(100, 105)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (rest["data"] / f"{split}.jsonl").write_text(text)
    rest["corpus"].write_text("")
    (rest["data"] / "regression.jsonl").write_text("")
    stated = contamination({"test": TEST_ROWS, "hard_test": 3, "regression": 0}, {})
    (rest["data"] / "contamination.json").write_text(json.dumps(stated))
    corpus = Retrieval.model_validate({"rows": 2, "from": "corpus"})
    rest["evaluate"] = rest["evaluate"].model_copy(
        update={"few_shot": 0, "retrieval": corpus, "prompts": [None], "engine": "transformers"}
    )
    with caplog.at_level(logging.INFO, "tunetrail"):
        metrics = run(tmp_path / "out", models, **rest)
    assert metrics["left_out"] == {
        "classical": "all training answers are the same, so there is nothing to learn",
        "base_retrieval": "there are no passages of documents to retrieve",
    }
    assert list(metrics["candidates"]) == ["base", "cpt", "sft", "dpo"]
    assert metrics["comparisons"]["simpler"]["right"] == "base"
    assert metrics["forgetting"] is None
    assert "base_retrieval is left out: there are no passages" in caplog.text
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    forgotten = next(gate for gate in verdict["gates"] if gate["gate"] == "forgetting")
    assert (forgotten["passed"], forgotten["value"]) == (False, None)


def test_what_a_request_costs_is_told_where_the_machine_has_a_price(settings: Evaluate) -> None:
    timings = {"seconds_per_request": 0.5, "latency_p50_seconds": 0.4}
    given = {"base": Answers([], [], 1, 1, timings)}
    assert evaluate._costs(given, settings) == {"base": timings}
    priced = settings.model_copy(update={"cost_per_hour": 3.6})
    assert evaluate._costs(given, priced)["base"]["cost_per_1000_requests"] == pytest.approx(0.5)


@pytest.mark.parametrize(("engine", "named"), [("onnx", "onnx"), ("transformers", "genai")])
def test_an_export_of_another_model_is_noticed(
    engine: str,
    named: str,
    models: dict[str, Path],
    exported: Path,
    rest: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rest["evaluate"] = rest["evaluate"].model_copy(
        update={"engine": engine, "few_shot": 0, "prompts": [None]}
    )
    write_record(rest["records"], models["cpt"])
    with caplog.at_level(logging.INFO, "tunetrail"):
        alike = {"base": models["cpt"], "merged": models["cpt"], "onnx": exported}
        run(tmp_path / "out", {**models, **alike}, **rest)
    assert "exporting" not in caplog.text
    assert f"the engine {named} answers only " in caplog.text
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
    write_record(rest["records"], broken)
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
    write_record(rest["records"], tmp_path / "nowhere")
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
