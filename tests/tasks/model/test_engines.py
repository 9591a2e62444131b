"""Both engines give the same greedy answers, alone or in a batch, and scores are what they say."""

import math
import random
from pathlib import Path

import pytest

from tasks.lineage.stage import StageError
from tasks.model import chat, engines
from tasks.model.engines import OnnxEngine, TransformersEngine

NEW = 8


def ignore(done: int) -> None:
    pass


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """40 prompts of 5 to 30 tokens, of which some share a length; more than a batch of one."""
    generator = random.Random(0)
    return [
        [generator.randrange(6, 300) for _ in range(generator.choice((5, 12, 13, 30)))]
        for _ in range(40)
    ]


@pytest.fixture(scope="module")
def onnx(exported: Path) -> OnnxEngine:
    return OnnxEngine(exported, 1)


@pytest.fixture(scope="module")
def transformers(lively_model: Path) -> TransformersEngine:
    return TransformersEngine(lively_model, 1)


def test_engines_agree_alone_and_in_a_batch(
    onnx: OnnxEngine, transformers: TransformersEngine, prompts: list[list[int]]
) -> None:
    done: list[int] = []
    batched = onnx.generate(prompts, NEW, done.append)
    assert batched == transformers.generate(prompts, NEW, ignore)
    assert batched == [onnx.generate([prompt], NEW, ignore)[0] for prompt in prompts]
    assert sum(done) == len(prompts)
    assert len({tuple(answer) for answer in batched}) > len(prompts) / 2
    assert sum(len(set(answer)) > 2 for answer in batched) > len(prompts) / 2


def test_answers_stop_before_the_end_token(
    onnx: OnnxEngine, transformers: TransformersEngine, prompts: list[list[int]]
) -> None:
    before = onnx.generate(prompts, NEW, ignore)
    end = max(before)[2]  # a token that the model does say
    ends = onnx._ends
    try:
        onnx._ends = transformers._ends = {end}
        cut = [answer[: answer.index(end)] if end in answer else answer for answer in before]
        assert onnx.generate(prompts, NEW, ignore) == cut
        assert transformers.generate(prompts, NEW, ignore) == cut
    finally:
        onnx._ends = transformers._ends = ends


def test_an_answer_is_never_longer_than_asked_for_or_than_the_context(onnx: OnnxEngine) -> None:
    assert len(onnx.generate([[7] * 20], 3, ignore)[0]) <= 3
    assert len(onnx.generate([[7] * (onnx._context - 2)], NEW, ignore)[0]) <= 2


def test_a_prompt_that_fills_the_context(
    onnx: OnnxEngine, transformers: TransformersEngine
) -> None:
    for engine in (onnx, transformers):
        with pytest.raises(StageError, match=r"a prompt of 512 tokens leaves no room .* of 512"):
            engine.generate([[7] * 512], NEW, ignore)


def test_no_prompts(onnx: OnnxEngine, transformers: TransformersEngine) -> None:
    assert onnx.generate([], NEW, ignore) == transformers.generate([], NEW, ignore) == []


def test_batches_hold_one_length_and_every_prompt_once() -> None:
    prompts = [[0] * length for length in [3, 1, 3, 2, 3] + [5] * (engines.BATCH + 1)]
    batches = list(engines.batches_of_equal_length(prompts))
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    assert all(len({len(prompts[index]) for index in batch}) == 1 for batch in batches)
    assert [len(batch) for batch in batches] == [1, 1, 3, engines.BATCH, 1]


def test_scores_are_the_models_own_loss(
    transformers: TransformersEngine, lively_model: Path
) -> None:
    import torch

    tokenizer = chat.load_tokenizer(lively_model)
    rows = []
    for answer in ("late", "held by customs, no date yet", "tomorrow"):
        rendered = chat.render(
            [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}],
            tokenizer,
        )
        rows.append((rendered.ids, rendered.mask))
    done: list[int] = []
    scores = transformers.score(rows, done.append)

    assert sum(done) == len(rows)
    for (ids, mask), score in zip(rows, scores, strict=True):
        labels = [token if keep else -100 for token, keep in zip(ids, mask, strict=True)]
        with torch.no_grad():
            loss = transformers._model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        assert score.tokens == sum(mask)
        assert math.isclose(score.nll / score.tokens, float(loss), rel_tol=1e-5)
