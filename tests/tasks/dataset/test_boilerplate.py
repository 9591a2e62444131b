"""What all texts of a source begin and end with, and what is left of them without it."""

from __future__ import annotations

import random

import hypothesis.strategies as some
import numpy as np
import pytest
from hypothesis import given, settings

from tasks.dataset import boilerplate
from tasks.dataset.boilerplate import FEWEST_TEXTS, FEWEST_WORDS, Shared
from tasks.dataset.ngrams import Block, Hashes

PROMPT = list(range(1000, 1120))
END = list(range(2000, 2010))


def hashes(words: list[int]) -> Hashes:
    return np.array(words, np.uint64)


def found(texts: list[list[int]]) -> tuple[list[int], list[int]]:
    shared = boilerplate.find(map(hashes, texts))
    assert bool(shared) == bool(len(shared.beginning) or len(shared.end))
    return shared.beginning.tolist(), shared.end.tolist()


def left(texts: list[list[int]], *known: tuple[list[int], list[int]]) -> list[list[int]]:
    """What is left of each text."""
    block = Block(
        np.arange(len(texts)),
        hashes([word for text in texts for word in text]),
        np.array([len(text) for text in texts]),
    )
    shared = [Shared(hashes(beginning), hashes(end)) for beginning, end in known]
    head, tail = boilerplate.measure([block], shared, len(texts) + 1)
    assert (head[-1], tail[-1]) == (0, 0)
    cuts = zip(texts, head.tolist(), tail.tolist(), strict=False)
    return [text[first : len(text) - last] for text, first, last in cuts]


def own(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(500) for _ in range(rng.randint(3, 9))] for _ in range(count)]


def test_a_prompt_around_all_texts() -> None:
    texts = [[*PROMPT, *text, *END] for text in own(40)]
    assert found(texts) == (PROMPT, END)
    assert left(texts, (PROMPT, END)) == own(40)


def test_the_order_of_texts_and_how_often_each_comes_do_not_matter() -> None:
    texts = [[*PROMPT, *text] for text in own(20)] + own(1, 1)
    for seed in range(5):
        shuffled = texts + [texts[seed]] * 50
        random.Random(seed).shuffle(shuffled)
        assert found(shuffled) == (PROMPT, [])


def test_a_few_odd_texts_are_no_matter() -> None:
    texts = [[*PROMPT, *text, *END] for text in own(95)]
    odd = own(6, 2)
    assert found(texts + odd[:5]) == (PROMPT, END)
    assert found(texts[:-1] + odd) == ([], [])
    assert left(odd, (PROMPT, END)) == odd


def test_what_is_too_little_to_go_by() -> None:
    texts = [[*PROMPT, *text] for text in own(FEWEST_TEXTS)]
    assert found(texts) == (PROMPT, [])
    assert found(texts[1:]) == ([], [])
    assert found(texts[1:] * 5) == ([], [])  # copies
    words = PROMPT[:FEWEST_WORDS]
    assert found([[*words[1:-1], *text, words[-1]] for text in own(40)]) == ([], [])
    assert found([[*words[:-1], *text, words[-1]] for text in own(40)]) == (words[:-1], words[-1:])
    assert found([]) == ([], [])


def test_a_word_is_left_of_each_text() -> None:
    texts = [PROMPT, [*PROMPT, *END], [*PROMPT, 1], [1, *END], END, []]
    assert left(texts, (PROMPT, END)) == [PROMPT, END, [1], [1], END, []]


def test_equal_texts_stay_equal_whatever_their_source() -> None:
    longer = [*PROMPT, 7]
    text = [*longer, 8, 9]
    assert left([text, [*PROMPT, 8, 9]], (PROMPT, []), (longer, []), (PROMPT, [])) == [[8, 9]] * 2


@given(
    some.lists(some.lists(some.integers(0, 3), max_size=12), max_size=30),
    some.lists(some.integers(0, 3), max_size=9),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_what_is_found_is_shared(texts: list[list[int]], prompt: list[int]) -> None:
    texts = [*texts, *([*prompt, *text] for text in texts)]
    beginning, end = found(texts)
    distinct = {tuple(text) for text in texts}
    allowed = boilerplate.ODD * len(distinct)
    assert sum(list(text[: len(beginning)]) != beginning for text in distinct) <= allowed
    assert sum(list(text[len(text) - len(end) :]) != end for text in distinct) <= allowed
    assert len(beginning) + len(end) not in range(1, FEWEST_WORDS)
    for text, rest in zip(texts, left(texts, (beginning, end)), strict=True):
        assert bool(rest) == bool(text)
        assert text in (
            rest, [*beginning, *rest], [*rest, *end], [*beginning, *rest, *end],
        )  # fmt: skip


@pytest.mark.parametrize("count", [100, 3000])
def test_nothing_is_found_in_texts_that_share_nothing(count: int) -> None:
    assert found(own(count)) == ([], [])
