"""What makes a test row hard, and which rows are the hardest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from tasks.dataset import columns, hardness, ngrams
from tasks.dataset.hardness import Measures, Novelty
from tasks.dataset.ngrams import Block


def block(*texts: str) -> Block:
    words, counts = ngrams.words(texts)
    return Block(np.arange(len(texts)), words, counts)


def labels(*answers: str) -> ngrams.Hashes:
    return np.array([columns.key("", answer) for answer in answers], np.uint64)


def names(rows: Iterable[int]) -> Mapping[int, tuple[str, str]]:
    """Later rows come first."""
    return {row: ("s", f"{9 - row}") for row in rows}


def test_novelty_is_the_share_of_pairs_that_no_training_row_has() -> None:
    novelty = Novelty([block("the pallet is damaged", "a b c"), block("word", "", "x y")])
    novelty.train([block("The pallet IS late.", "b c"), block(), block("is", "damaged")])
    assert novelty.shares().tolist() == [pytest.approx(1 / 3), 0.5, 0, 0, 1]


def test_novelty_without_rows() -> None:
    assert Novelty([]).shares().tolist() == []
    novelty = Novelty([block("a b")])
    novelty.train([])
    assert novelty.shares().tolist() == [1]


def test_rarity_is_the_share_of_other_answers() -> None:
    found = hardness.rarity(labels("a", "b", "new"), labels("a", "a", "a", "b"))
    assert found.tolist() == [0.25, 0.75, 1]
    assert hardness.rarity(labels("a"), labels()).tolist() == [1]


def test_the_hardest_rank_highest_in_the_mean() -> None:
    values = {
        "novelty": np.array([0.1, 0.9, 0.5, 0.8]),
        "rarity": np.array([0.5, 0.6, 0.5, 0.9]),
        "tokens": np.array([90.0, 30.0, 30.0, 40.0]),
    }
    measures = Measures(np.array([2, 4, 5, 7]), values, 9)
    assert np.flatnonzero(measures.hardest(0.25, names)).tolist() == [7]
    assert np.flatnonzero(measures.hardest(0.5, names)).tolist() == [4, 7]
    assert np.flatnonzero(measures.hardest(0.01, names)).tolist() == [7]
    hard = measures.hardest(0.5, names)
    assert measures.means(hard) == {
        "novelty": pytest.approx(0.85),
        "rarity": pytest.approx(0.75),
        "tokens": 35,
    }
    assert measures.means(np.zeros(9, np.bool_)) == dict.fromkeys(values)


def test_ties_are_settled_by_source_and_id() -> None:
    same = np.array([0.5, 0.5, 0.5, 0.5])
    measures = Measures(np.arange(4), {"novelty": same, "tokens": same}, 4)
    assert np.flatnonzero(measures.hardest(0.5, names)).tolist() == [2, 3]


def test_no_test_rows() -> None:
    measures = Measures(np.arange(0), {"novelty": np.empty(0)}, 4)
    assert not measures.hardest(0.5, names).any()
