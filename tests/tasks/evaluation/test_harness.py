"""lm-eval on the tiny model, with a task file over local data; the rest needs no lm-eval."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation import harness
from tasks.lineage.stage import StageError

TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture()
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"the truck {n} is", "choices": [" late", " early"], "answer": n % 2}
        for n in range(6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "local_choice.yaml"
    path.write_text(TASK.format(data=data))
    return path


def test_no_tasks_need_nothing() -> None:
    assert harness.run({"base": Path("nowhere")}, [], 10, 1) == {}


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(StageError) as caught:
        harness.run({"base": Path("nowhere")}, ["hellaswag"], 10, 1)
    assert str(caught.value) == (
        "evaluate.lm_eval.tasks names hellaswag, but lm_eval is not installed; "
        "run pip install 'tunetrail[lm-eval]', or set evaluate.lm_eval.tasks to []"
    )


@pytest.mark.slow
def test_a_local_task(task: Path, tiny_model: Path, lively_model: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs pip install 'tunetrail[lm-eval]'")
    models = {"base": tiny_model, "dpo": lively_model}
    found = harness.run(models, [str(task)], 4, 1)
    assert list(found) == ["local_choice"]
    assert list(found["local_choice"]["acc"]) == ["base", "dpo"]
    assert all(0 <= value <= 1 for value in found["local_choice"]["acc"].values())
    assert found == harness.run(models, [str(task)], 4, 1)
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_a_task_that_cannot_be_had(task: Path, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs pip install 'tunetrail[lm-eval]'")
    with pytest.raises(
        StageError, match="names no_such_task, which lm-eval does not have; `lm_eval"
    ):
        harness.run({"base": tiny_model}, ["no_such_task"], 4, 1)
    with pytest.raises(StageError, match=r"names none\.yaml, which is no file"):
        harness.run({"base": tiny_model}, ["none.yaml"], 4, 1)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(StageError, match=r"lm-eval could not run .* on base: "):
        harness.run({"base": tiny_model}, [str(task)], 4, 1)


def test_numbers_of_a_task() -> None:
    scores = {
        "alias": "x",
        "acc,none": 0.25,
        "acc_stderr,none": 0.1,
        "exact_match,strict-match": 1,
        "f1,none": float("nan"),
        "sample_len": 4,
    }
    assert harness._numbers(scores) == [("acc", 0.25), ("exact_match (strict-match)", 1.0)]
