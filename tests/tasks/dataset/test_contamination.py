"""Held-out texts inside training texts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tasks.dataset import contamination, duplicates, ngrams
from tasks.dataset.contamination import Overlap
from tasks.dataset.ngrams import Block
from tasks.params import Decontamination

HELD_OUT = "the container is still held by customs in Oslo and nobody knows when"
SHORT = "where is my parcel"


def settings(words: int = 8, overlap: float = 0.8) -> Decontamination:
    values = {"ngram_words": words, "overlap": overlap, "action": "reject"}
    return Decontamination.model_validate(values)


def block(texts: list[str], first: int = 0) -> Block:
    words, counts = ngrams.words(texts)
    return Block(np.arange(first, first + len(texts)), words, counts)


def held(
    held_out: list[str], training: list[str], chosen: Decontamination | None = None
) -> dict[int, int]:
    """By training text the first held-out text that it holds; training is numbered from 1000."""
    overlap = Overlap([block(held_out)], chosen or settings())
    overlap.compare([block(training, 1000)])
    rows, first = overlap.held()
    return {row - 1000: other for row, other in zip(rows.tolist(), first.tolist(), strict=True)}


def test_a_text_that_holds_a_held_out_one() -> None:
    page = f"Examples of messages.\n\n1. {HELD_OUT.upper()}!\n2. and so on"
    assert held([SHORT, HELD_OUT], ["nothing of it", page]) == {1: 1}


@pytest.mark.parametrize(("words", "found"), [(13, {0: 0}), (12, {0: 0}), (11, {})])
def test_most_of_it_is_enough(words: int, found: dict[int, int]) -> None:
    assert len(HELD_OUT.split()) == 13  # 6 runs of 8, of which 5 are over 0.8
    text = "we read: " + " ".join(HELD_OUT.split()[:words])
    assert held([HELD_OUT], [text]) == found


def test_the_share_is_reached_exactly() -> None:
    held_out = " ".join(f"w{number}" for number in range(17))  # 10 runs of 8
    text = " ".join(f"w{number}" for number in range(14))  # 7 of them
    assert held([held_out], [text], settings(overlap=0.7)) == {0: 0}
    assert held([held_out], [text], settings(overlap=0.71)) == {}


def test_phrases_that_are_too_short_to_judge() -> None:
    overlap = Overlap([block([SHORT, HELD_OUT, ""])], settings())
    assert overlap.short.tolist() == [0, 2]
    assert held([SHORT], [f"Customers ask {SHORT} many times a day", SHORT]) == {}


def test_a_run_does_not_go_from_a_question_to_its_answer() -> None:
    words, _ = ngrams.words([HELD_OUT])
    parted = np.concatenate([words[:7], [ngrams.BARRIER], words[7:]])
    overlap = Overlap([block([HELD_OUT])], settings())
    overlap.compare([Block(np.array([5]), parted, np.array([len(parted)]))])
    assert overlap.held()[0].tolist() == []


def test_nothing_held_out_and_nothing_to_train_on() -> None:
    assert held([], [HELD_OUT]) == {}
    assert held([HELD_OUT], []) == {}
    overlap = Overlap([], settings())
    overlap.compare([])
    assert overlap.shares(np.zeros(0, np.bool_), {}) == {}


def texts(count: int, seed: int) -> list[str]:
    """Texts that share a beginning, and of which some hold most of another."""
    rng = random.Random(seed)
    form = "please sort this message of a customer into one of our classes"
    found = [
        f"{form} {' '.join(rng.choice('abcdefghij') for _ in range(rng.randint(0, 15)))}"
        for _ in range(count)
    ]
    return found + [text[rng.randrange(9) :] for text in found[:5]]


@pytest.mark.parametrize("overlap", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_what_counting_finds(
    seed: int, overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination, "_RUNS_AT_ONCE", 50)
    held_out, training = texts(30, seed), texts(40, seed + 1) + texts(10, seed)

    def runs(text: str) -> set[tuple[str, ...]]:
        words = duplicates.words(text)
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    expected: dict[int, int] = {}
    pairs: set[int] = set()
    for row, text in enumerate(training):
        for other, tested in enumerate(held_out):
            if runs(tested) and len(runs(text) & runs(tested)) >= overlap * len(runs(tested)):
                expected.setdefault(row, other)
                pairs.add(other)
    assert held(held_out, training, settings(3, overlap)) == expected
    index = Overlap([block(held_out[:7]), block(held_out[7:], 7)], settings(3, overlap))
    index.compare([block(training[:9], 1000), block(training[9:], 1009)])
    everything = np.ones(1000 + len(training), np.bool_)
    part = {"test": np.isin(np.arange(len(everything)), range(len(held_out)))}
    found = index.shares(everything, part)["test"]
    assert found["contaminated"] == len(pairs)


def test_the_share_that_is_left() -> None:
    overlap = Overlap([block([HELD_OUT, SHORT, HELD_OUT])], settings())
    overlap.compare([block([HELD_OUT, "another"], 3)])
    parts: dict[str, Any] = {
        "test": np.array([True, True, False, False, False]),
        "other": np.array([False, False, True, False, False]),
        "short": np.array([False, True, False, False, False]),
        "none": np.zeros(5, np.bool_),
    }
    kept, left_out = np.ones(5, np.bool_), np.array([True, True, True, False, True])
    assert overlap.shares(kept, parts) == {
        "test": {"rows": 2, "judged": 1, "contaminated": 1, "share": 1.0},
        "other": {"rows": 1, "judged": 1, "contaminated": 1, "share": 1.0},
        "short": {"rows": 1, "judged": 0, "contaminated": 0, "share": None},
        "none": {"rows": 0, "judged": 0, "contaminated": 0, "share": None},
    }
    assert [found["contaminated"] for found in overlap.shares(left_out, parts).values()] == [0] * 4
