"""Candidates: which are the same model, how they are asked, and what is scored of a conversation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.evaluation import candidates
from tasks.evaluation.candidates import Answers, Exported, Model
from tasks.evaluation.prompting import Question
from tasks.evaluation.rows import Row
from tasks.lineage.stage import StageError
from tasks.model.engines import Likelihood
from tasks.params import Retrieval


def model(folder: Path, weights: bytes, **others: str) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    for name, text in others.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def row(number: int, split: str = "test", *, text: str = "", answer: str = "2 d") -> Row:
    turns = [("user", text or f"is truck {number} late?"), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return Row("s", str(number), split, False, messages)


@pytest.fixture(scope="module")
def lively(lively_model: Path) -> Model:
    return Model(Exported(lively_model, None), "transformers", 1)


def test_models_of_equal_content_are_asked_once(tmp_path: Path) -> None:
    models = {
        "base": model(tmp_path / "1", b"x", manifest="with"),
        "cpt": model(tmp_path / "2", b"x", manifest="another"),
        "sft": model(tmp_path / "3", b"y"),
        "dpo": model(tmp_path / "4", b"y", generation_config="{}"),
    }
    unexported = {name: Exported(folder, None) for name, folder in models.items()}
    assert candidates.alike(unexported, "onnx") == [["base", "cpt"], ["sft"], ["dpo"]]


def test_another_template_or_export_makes_another_candidate(tmp_path: Path) -> None:
    told = {"eos_token": "<end>", "is_local": True}
    folders = {
        "champion": model(tmp_path / "1", b"x", tokenizer_config='{"eos_token": "<end>"}'),
        "sft": model(tmp_path / "2", b"x", tokenizer_config=json.dumps(told)),
        "dpo": model(tmp_path / "3", b"x", tokenizer_config=json.dumps(told)),
    }
    for name, precision in zip(folders, ("int4", "fp32", "fp32"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text(precision)
    models = {name: Exported(folder, tmp_path / name) for name, folder in folders.items()}
    assert candidates.alike(models, "onnx") == [["champion"], ["sft", "dpo"]]
    assert candidates.alike(models, "transformers") == [["champion", "sft", "dpo"]]
    (folders["sft"] / "chat_template.jinja").write_text("another")
    (folders["dpo"] / "tokenizer_config.json").write_text('{"chat_template": "a third"}')
    assert candidates.alike(models, "vllm") == [["champion"], ["sft"], ["dpo"]]


def test_only_the_last_answer_is_scored() -> None:
    assert candidates.last_answer([0, 1, 1, 0, 0, 1, 1, 0]) == [0, 0, 0, 0, 0, 1, 1, 0]
    assert candidates.last_answer([0, 1]) == [0, 1]


def test_equal_models_are_exported_once_and_a_champion_stays_as_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[Path, Path]] = []
    monkeypatch.setattr(candidates, "export_onnx", lambda asked, precision: jobs.extend(asked))
    monkeypatch.setattr(candidates, "exported_precision", lambda folder: "fp32")
    served, theirs = tmp_path / "onnx", tmp_path / "theirs"
    models = {
        "base": Exported(model(tmp_path / "1", b"x"), None),
        "champion": Exported(model(tmp_path / "2", b"z"), theirs),
        "cpt": Exported(model(tmp_path / "3", b"x"), None),
        "dpo": Exported(model(tmp_path / "4", b"y"), served),
    }
    done = candidates.export(models, served, tmp_path / "w")
    assert jobs == [(models["cpt"].folder, tmp_path / "w/cpt-onnx")]
    assert [one.onnx for one in done.values()] == [jobs[0][1], theirs, jobs[0][1], served]


def test_no_candidate_takes_the_export_of_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[Path, Path]] = []
    monkeypatch.setattr(candidates, "export_onnx", lambda asked, precision: jobs.extend(asked))
    monkeypatch.setattr(candidates, "exported_precision", lambda folder: "fp32")
    served, theirs, ours = tmp_path / "onnx", tmp_path / "theirs", tmp_path / "w/sft-onnx"
    same, tuned = model(tmp_path / "1", b"x"), model(tmp_path / "2", b"y")
    before = {"champion": Exported(same, theirs), "sft": Exported(same, None)}
    done = candidates.export({**before, "dpo": Exported(same, served)}, served, tmp_path / "w")
    assert [one.onnx for one in done.values()] == [theirs, served, served]
    assert jobs == []
    done = candidates.export({**before, "dpo": Exported(tuned, served)}, served, tmp_path / "w")
    assert [one.onnx for one in done.values()] == [theirs, ours, served]
    assert jobs == [(same, ours)]


def test_answers_stand_at_the_positions_of_their_rows(lively: Model) -> None:
    rows = [row(1), row(2, "regression"), row(3)]
    questions = [Question(rows[0]), Question(rows[2])]
    fitted = candidates.fitted(lively, questions, 5)
    counted: list[int] = []
    given = candidates.ask(lively, fitted, [0, 2], 3, 5, True, counted.append, [0])
    assert given.texts[1] is None and given.likelihoods[1] is None
    assert sum(counted) == 4  # answered and scored
    (alone,) = lively.generate([fitted.prompts[1]], 5, lambda done: None)
    assert given.texts[2] == lively.decode(alone)
    assert given.tokens_in == sum(map(len, fitted.prompts)) / 2
    assert 1 <= given.tokens_out <= 6
    assert set(given.timings) == {
        "tokens_per_second",
        "latency_p50_seconds",
        "latency_p95_seconds",
        "seconds_per_request",
        "latency_probes",
    }
    assert given.timings["latency_probes"] == 1
    unscored = candidates.ask(lively, fitted, [0, 2], 3, 5, False, lambda done: None, [1])
    assert (unscored.texts, unscored.likelihoods) == (given.texts, [None] * 3)


def test_latency_is_measured_on_drawn_questions_of_the_test() -> None:
    questions = [Question(row(n, "test" if n % 2 else "regression")) for n in range(200)]
    drawn = candidates.probes(questions, 64, 1)
    assert len(set(drawn)) == 64 and all(number % 2 for number in drawn)
    assert drawn == candidates.probes(questions, 64, 1) != candidates.probes(questions, 64, 2)
    assert sorted(candidates.probes(questions[:4], 64, 1)) == [1, 3]


def test_the_expected_answer_is_scored_behind_the_whole_prompt(lively: Model) -> None:
    (plain,) = lively.score([Question(row(1))], lambda done: None)
    (shown,) = lively.score([Question(row(1), examples=(row(2),))], lambda done: None)
    assert plain.tokens == shown.tokens > 0
    assert plain.nll != shown.nll


def test_a_prompt_is_tried(lively: Model) -> None:
    def outcomes(answered: Sequence[object]) -> list[float]:
        return [1.0, 0.0]

    tried = candidates.try_prompt(lively, [Question(row(1)), Question(row(2))], 3, outcomes)
    assert tried.score == 0.5
    assert math.isfinite(tried.nll)


def test_retrieved_rows_stand_best_last(lively: Model) -> None:
    solved = [row(7, text="customs papers"), row(8, text="truck late"), row(9, text="late")]
    settings = Retrieval.model_validate({"rows": 2, "from": "train"})
    (question,) = candidates.with_retrieval([row(1)], settings, solved, [], "x", lively.tokenizer)
    assert question.examples == (solved[2], solved[1])
    assert (question.prompt, question.passages) == (None, ())


def test_passages_with_special_tokens_are_not_retrieved(
    lively: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.lineage.console import log
    from tasks.model import chat

    monkeypatch.setattr(log, "propagate", True)
    token = chat.special_tokens(lively.tokenizer)[0]
    settings = Retrieval.model_validate({"rows": 2, "from": "corpus"})
    passages = [f"truck {token}", "the truck is late"]
    (question,) = candidates.with_retrieval(
        [row(1)], settings, [], passages, "Hm, {question}", lively.tokenizer
    )
    assert (question.passages, question.prompt) == (("the truck is late",), "Hm, {question}")
    assert "1 passages of the documents hold special tokens" in caplog.text


def test_a_likelihood_that_is_no_number() -> None:
    answers = Answers(["a", "b"], [None, Likelihood(math.nan, 3)], 1, 1, {})
    with pytest.raises(StageError, match="sft gives the expected answer of row 2 a likelihood of"):
        candidates.check_finite("sft", answers)


def test_the_engine_is_compared_with_transformers(
    lively: Model, lively_model: Path, exported: Path
) -> None:
    served = Model(Exported(lively_model, exported), "onnx", 1)
    prompts = candidates.fitted(lively, [Question(row(n)) for n in range(4)], 5).prompts
    assert candidates.served_equals_trained(served, lively, prompts, 5) == 1
    settings = json.loads((lively_model / "config.json").read_text())
    assert served.context == settings["max_position_embeddings"]
