"""A score is the model's own loss, with a common beginning or without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tasks.model import chat
from tasks.model.engines import Ids, TransformersEngine


@pytest.fixture(scope="module")
def transformers(lively_model: Path) -> TransformersEngine:
    return TransformersEngine(lively_model, 1)


def of_the_model(model: Any, ids: Ids, mask: Ids) -> float:
    import torch

    labels = [token if keep else -100 for token, keep in zip(ids, mask, strict=True)]
    with torch.no_grad():
        return float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)


def test_scores_are_the_models_own_loss(
    transformers: TransformersEngine, lively_model: Path
) -> None:
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
        assert score.tokens == sum(mask)
        loss = of_the_model(transformers._model, ids, mask)
        assert math.isclose(score.nll / score.tokens, loss, rel_tol=1e-5)


@pytest.mark.parametrize("folder", ["lively_model", "gemma"])
def test_a_common_beginning_changes_no_score(
    folder: str, few_shot: list[Ids], request: pytest.FixtureRequest
) -> None:
    engine = TransformersEngine(request.getfixturevalue(folder), 1)
    rows = [([*ids, 7, 8], [0] * (len(ids) - 1) + [1] * 3) for ids in few_shot]
    for (ids, mask), score in zip(rows, engine.score(rows, lambda done: None), strict=True):
        loss = of_the_model(engine._model, ids, mask)
        assert score.tokens == 3
        assert math.isclose(score.nll / 3, loss, rel_tol=1e-5)
