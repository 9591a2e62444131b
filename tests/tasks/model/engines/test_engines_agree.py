"""Every engine gives the greedy tokens of transformers' `generate`, whatever the prompts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.lineage.stage import StageError
from tasks.model.engines import GenaiEngine, Ids, OnnxEngine, TransformersEngine, batching

NEW = 8


def ignore(done: int) -> None:
    pass


@pytest.fixture(scope="module")
def onnx(exported: Path) -> OnnxEngine:
    return OnnxEngine(exported, 2)


@pytest.fixture(scope="module")
def genai(exported: Path) -> GenaiEngine:
    return GenaiEngine(exported, 1)


@pytest.fixture(scope="module")
def transformers(lively_model: Path) -> TransformersEngine:
    return TransformersEngine(lively_model, 1)


@pytest.fixture(scope="module")
def sliding(gemma: Path) -> TransformersEngine:
    return TransformersEngine(gemma, 1)


def one_by_one(engine: TransformersEngine, prompts: list[Ids], new: int = NEW) -> list[Ids]:
    """What `generate` says to each prompt alone."""
    return engine.plainly(prompts, new, ignore, at_once=1)


def test_all_agree_alone_and_in_a_batch(
    onnx: OnnxEngine,
    genai: GenaiEngine,
    transformers: TransformersEngine,
    prompts: list[Ids],
) -> None:
    expected = one_by_one(transformers, prompts)
    assert len({tuple(answer) for answer in expected}) > len(prompts) / 2
    for engine in (onnx, genai, transformers):
        done: list[int] = []
        assert engine.generate(prompts, NEW, done.append) == expected
        assert sum(done) == len(prompts)
        alone = [engine.generate([prompt], NEW, ignore)[0] for prompt in prompts[:10]]
        assert alone == expected[:10]


def test_a_common_beginning_is_read_once(
    onnx: OnnxEngine,
    transformers: TransformersEngine,
    few_shot: list[Ids],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = one_by_one(transformers, few_shot)
    read: list[int] = []
    forward = transformers._model.forward

    def counting(input_ids: Any, **rest: Any) -> Any:
        read.append(input_ids.numel())
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(transformers._model, "forward", counting)
    assert transformers.generate(few_shot, NEW, ignore) == expected
    shared = batching.shared_prefix(few_shot)
    assert shared == 40
    assert sum(read) <= shared + sum(len(ids) - shared for ids in few_shot) + NEW * len(few_shot)
    assert onnx.generate(few_shot, NEW, ignore) == expected


@pytest.mark.parametrize("which", ["prompts", "few_shot"])
def test_a_model_with_sliding_windows(
    sliding: TransformersEngine, which: str, request: pytest.FixtureRequest
) -> None:
    asked = request.getfixturevalue(which)
    expected = one_by_one(sliding, asked, 20)
    assert len({tuple(answer) for answer in expected}) > len(asked) / 2
    assert sliding.generate(asked, 20, ignore) == expected


def test_prompts_of_one_token_beside_long_ones(
    onnx: OnnxEngine,
    genai: GenaiEngine,
    transformers: TransformersEngine,
    sliding: TransformersEngine,
    prompts: list[Ids],
) -> None:
    asked = [[7], *prompts[:5], [9], [7]]
    assert sliding.generate(asked, NEW, ignore) == one_by_one(sliding, asked)
    expected = one_by_one(transformers, asked)
    for engine in (onnx, genai, transformers):
        assert engine.generate(asked, NEW, ignore) == expected


def test_small_batches_and_parts_give_the_same(
    onnx: OnnxEngine,
    transformers: TransformersEngine,
    sliding: TransformersEngine,
    prompts: list[Ids],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = (onnx, transformers, sliding)
    before = [engine.generate(prompts, NEW, ignore) for engine in engines]
    from tasks.model.engines import onnx_runtime, transformers_loop

    monkeypatch.setattr(batching, "CACHE_BYTES", 100_000)
    for module in (onnx_runtime, transformers_loop):
        monkeypatch.setattr(module, "READ_AT_ONCE", 30)
    assert [engine.generate(prompts, NEW, ignore) for engine in engines] == before


def test_answers_stop_before_any_of_the_end_tokens(
    onnx: OnnxEngine,
    genai: GenaiEngine,
    transformers: TransformersEngine,
    prompts: list[Ids],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = transformers.generate(prompts, NEW, ignore)
    ends = {before[0][0], before[1][3]}  # the first leaves an answer empty
    cut = [
        answer[: min((answer.index(end) for end in ends if end in answer), default=None)]
        for answer in before
    ]
    assert cut[0] == []
    for engine in (onnx, genai, transformers):
        monkeypatch.setattr(engine, "_ends", ends)
        assert engine.generate(prompts, NEW, ignore) == cut
        assert engine.generate(prompts[:1], NEW, ignore) == [[]]


def test_an_answer_is_never_longer_than_asked_for_or_than_the_context(
    onnx: OnnxEngine, genai: GenaiEngine, transformers: TransformersEngine
) -> None:
    full = onnx._context - 2
    for engine in (onnx, genai, transformers):
        ends, engine._ends = engine._ends, set()
        try:
            short, long = engine.generate([[7] * 20, [7] * full], 5, ignore)
        finally:
            engine._ends = ends
        assert (len(short), len(long)) == (5, 2)


def test_a_prompt_that_fills_the_context(
    onnx: OnnxEngine, genai: GenaiEngine, transformers: TransformersEngine
) -> None:
    for engine in (onnx, genai, transformers):
        with pytest.raises(StageError, match=r"a prompt of 512 tokens leaves no room .* of 512"):
            engine.generate([[7], [7] * 512], NEW, ignore)


def test_no_prompts_and_an_empty_one(
    onnx: OnnxEngine, genai: GenaiEngine, transformers: TransformersEngine
) -> None:
    for engine in (onnx, genai, transformers):
        assert engine.generate([], NEW, ignore) == []
        with pytest.raises(StageError, match=r"prompt 2 of 2 has no tokens; .*chat_template"):
            engine.generate([[7], []], NEW, ignore)
