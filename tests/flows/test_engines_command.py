"""`tunetrail engines`: which engine is the fastest with the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import engines
from flows.cli import FAULT, MISUSE, app
from flows.engines import Measured
from tasks.lineage.stage import StageError
from tasks.params import load

REPOSITORY = Path(__file__).parents[2]
A, B, C = (4, 5), (6,), ()


def tunetrail(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["engines", *arguments], prog_name="tunetrail")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with params and two test rows, and no model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    engines.TEST.parent.mkdir(parents=True)
    turns = [
        {"role": "user", "content": "held by customs"},
        {"role": "assistant", "content": "no date yet"},
    ]
    row = json.dumps({"messages": turns}) + "\n"
    engines.TEST.write_text(2 * row)
    return tmp_path


def answers(*given: tuple[int, ...]) -> dict[str, Any]:
    return {
        "tokens_a_second": 100.0,
        "load_seconds": 0.5,
        "answers": [list(each) for each in given],
    }


def test_the_fastest_of_those_with_the_same_tokens(place: Path, lively_model: Path) -> None:
    done = {
        "generate": answers(A, B),
        "onnx": {**answers(A, C), "tokens_a_second": 900.0},
        "genai": {**answers(A, B), "tokens_a_second": 300.0},
        "transformers": {**answers(A, B), "tokens_a_second": 200.0},
        "vllm": {"why_not": "vllm is not installed"},
    }
    told: list[str] = []
    found = engines.measure(
        lively_model, None, 2, told.append, run=lambda order: done[order["engine"]]
    )
    assert told == [f"measuring {name}" for name in done]
    assert engines.best(found).name == "genai"
    assert engines.table(found) == [
        "engine         tokens/s   same answers  load, s",
        "generate            100         2 of 2      0.5",
        "onnx                900         1 of 2      0.5",
        "genai               300         2 of 2      0.5",
        "transformers        200         2 of 2      0.5",
        "vllm         vllm is not installed",
    ]


def test_none_could_answer(place: Path, lively_model: Path) -> None:
    def run(order: dict[str, Any]) -> dict[str, Any]:
        return answers(A, B) if order["engine"] == "generate" else {"why_not": "failed: no memory"}

    found = engines.measure(lively_model, None, 2, lambda line: None, run)
    with pytest.raises(StageError, match="no engine could answer"):
        engines.best(found)
    with pytest.raises(StageError, match="gives no answers: failed: no memory"):
        engines.measure(
            lively_model, None, 2, lambda line: None, lambda order: {"why_not": "failed: no memory"}
        )


def test_each_engine_is_measured(place: Path, lively_model: Path, exported: Path) -> None:
    order = {
        "model": str(lively_model),
        "onnx": str(exported),
        "rows": 9,
        "new": 6,
        "threads": 1,
        "test": str(engines.TEST),
    }
    found = {
        name: engines.measure_one({**order, "engine": name})
        for name in ("generate", "onnx", "genai", "transformers")
    }
    assert len({json.dumps(each["answers"]) for each in found.values()}) == 1
    assert len(found["onnx"]["answers"]) == 2
    assert all(each["tokens_a_second"] > 0 < each["load_seconds"] for each in found.values())
    none = engines.measure_one({**order, "engine": "onnx", "onnx": None})
    assert none["why_not"].startswith("onnx needs an exported model")


def test_the_command_writes_the_choice_and_keeps_comments(
    place: Path, lively_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Measured("generate", 1, 1, (A,)), Measured("genai", 2, 1, (A,))]
    monkeypatch.setattr(engines, "measure", lambda *_: found)
    before = Path("params.yaml").read_text()
    shown = tunetrail()
    assert shown.exit_code == 0
    assert shown.output.endswith(
        "genai is the fastest with 1 of 1 answers the same.\n"
        "Next: `tunetrail engines --write` sets it in params.yaml\n"
    )
    assert Path("params.yaml").read_text() == before
    shown = tunetrail("--write")
    assert "  evaluate.engine: onnx -> genai\nNext: `tunetrail run`\n" in shown.output
    assert load(Path("params.yaml")).evaluate.engine == "genai"
    after = Path("params.yaml").read_text()
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    [(old, new)] = changed
    assert old.partition("#")[2] == new.partition("#")[2] != ""
    assert "params.yaml says so already." in tunetrail("--write").output


def test_a_choice_that_the_params_do_not_allow(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path("params.yaml").read_text()
    text = text.replace("  onnx: true ", "  onnx: false").replace(
        "  engine: onnx ", "  engine: transformers "
    )
    Path("params.yaml").write_text(text)
    found = [Measured("generate", 1, 1, (A,)), Measured("onnx", 2, 1, (A,))]
    monkeypatch.setattr(engines, "measure", lambda *_: found)
    shown = tunetrail("--write")
    assert shown.exit_code == MISUSE
    assert "evaluate.engine: is onnx, but merge.onnx is false" in shown.output
    assert Path("params.yaml").read_text() == text


def test_what_is_missing(place: Path, lively_model: Path) -> None:
    shown = tunetrail()
    assert shown.exit_code == MISUSE
    assert "models/merged holds no model in Hugging Face format" in shown.output
    engines.TEST.write_text("")
    shown = tunetrail("--model", str(lively_model))
    assert "data/formatted/test.jsonl has no rows to ask; `tunetrail run format`" in shown.output


@pytest.mark.slow
def test_engines_as_processes(place: Path, lively_model: Path, exported: Path) -> None:
    shown = tunetrail("--model", str(lively_model), "--onnx", str(exported), "--rows", "2")
    assert shown.exit_code == 0, shown.output
    assert "vllm is not installed" in shown.output
    assert "is the fastest with 2 of 2 answers the same" in shown.output


def test_an_engine_that_dies_is_a_line_of_the_table(place: Path) -> None:
    run = engines._in_a_process({})
    done = run({"engine": "onnx", "model": "nowhere", "test": "nothing", "rows": 1})
    assert done["why_not"].startswith("failed: ")
    assert FAULT not in (0, MISUSE)
