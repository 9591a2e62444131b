"""How the scores of the quality checklist are computed, and what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.dataset import checklist
from tasks.lineage.stage import StageError
from tasks.params import Params

NOTHING = np.array([], np.int64)


def test_every_limit_of_params_has_a_meaning(params: Params) -> None:
    assert list(params.validate_.min_score.model_dump()) == list(checklist.MEANINGS)


def test_consistency_is_what_the_schema_lets_through() -> None:
    assert checklist.consistency(3, 4, NOTHING, schema=True) == 0.75
    assert checklist.consistency(0, 0, NOTHING, schema=True) is None


def test_consistency_without_a_schema_is_the_commonest_shape() -> None:
    assert checklist.consistency(0, 0, np.array([5, 5, 7, 5]), schema=False) == 0.75
    assert checklist.consistency(0, 0, NOTHING, schema=False) is None


def test_contradictions() -> None:
    assert checklist.contradictions(prompts=8, contradicted=2) == 0.75
    assert checklist.contradictions(0, 0) is None


def test_class_balance_is_normalised_entropy() -> None:
    assert checklist.class_balance(np.array([1, 2] * 8)) == pytest.approx(1)
    nine_to_one = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert checklist.class_balance(np.array([1] * 9 + [2])) == pytest.approx(nine_to_one)
    assert checklist.class_balance(np.array([1] * 9)) == 0
    assert checklist.class_balance(np.arange(9)) is None
    assert checklist.class_balance(NOTHING) is None


def test_distinct_words_are_distinct_bigrams() -> None:
    assert checklist.distinct_words(["a b a b", "A, b!"]) == 2 / 4
    assert checklist.distinct_words(["a b c"] * 3000) == 2 / 6000
    assert checklist.distinct_words(["alone"]) is None


def test_clusters_are_groups_of_near_duplicates() -> None:
    words = [f"the truck of order {n} waits at gate {n * 7} since {n * 3} hours" for n in range(4)]
    assert checklist.clusters(words) == 1
    assert checklist.clusters([*words, words[0], words[0].upper()]) == 4 / 6
    assert checklist.clusters([]) is None


def model(folder: Path, config: object) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("key", ["max_position_embeddings", "text_config"])
def test_length_is_what_fits_into_the_context(tmp_path: Path, key: str) -> None:
    value = {"max_position_embeddings": 3} if key == "text_config" else 3
    base = model(tmp_path, {key: value})
    assert checklist.length(["a b c", "a b c d", "a"], base) == 2 / 3
    assert checklist.length([], base) is None


def test_a_model_without_a_context_is_not_judged(tmp_path: Path) -> None:
    assert checklist.length(["a"], model(tmp_path, {})) is None


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_model_that_cannot_be_read_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=r"config.json: \w+Error, the length .* run stage base"):
        checklist.length(["a"], tmp_path)


@pytest.mark.parametrize(
    ("rows", "begins"),
    [
        (0, None),
        (1, "1 train chats are fewer than 200: the model learns the form"),
        (199, "199 train chats are fewer than 200: "),
        (200, "200 train chats are fewer than 500: enough for a narrow task"),
        (999, "999 train chats are fewer than 1000: enough for most narrow tasks"),
        (1000, None),
    ],
)
def test_few_rows_are_warned_about(rows: int, begins: str | None) -> None:
    found = checklist.volume(rows)
    assert found is None if begins is None else str(found).startswith(begins)


def test_a_score_says_what_to_do_when_it_is_low() -> None:
    assert str(checklist.Score("length", 0.5, 0.9)) == (
        "length 0.5000, at least 0.9; shorten or split long rows, or choose a model with a longer "
        "context"
    )
    assert str(checklist.Score("length", 0.9, 0.9)) == "length 0.9000, at least 0.9"
    assert str(checklist.Score("length", None, 0.9)) == "length not judged"
