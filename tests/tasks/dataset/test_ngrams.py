"""Runs of words as hashes: the same runs have the same ones, and no run leaves its row."""

import tempfile

import hypothesis.strategies as some
import numpy as np
import pytest
from hypothesis import given, settings

from tasks.dataset import duplicates, ngrams
from tasks.dataset.ngrams import Block, Flags, HashSet, WordStore

TEXTS = ["", "One two, THREE!", "one two three four", "日本 語x", "a_b ß İ", "...", "one"]


def block(*texts: str) -> Block:
    words, counts = ngrams.words(texts)
    return Block(np.arange(len(texts)), words, counts)


def named_runs(texts: list[str], size: int) -> list[tuple[int, tuple[str, ...]]]:
    found = [duplicates.words(text) for text in texts]
    return [
        (row, tuple(words[start : start + size]))
        for row, words in enumerate(found)
        for start in range(len(words) - size + 1)
    ]


def test_no_texts() -> None:
    words, counts = ngrams.words([])
    assert (len(words), len(counts)) == (0, 0)


@given(some.lists(some.text(some.sampled_from("ab é ß日.\n"), max_size=12), max_size=6))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_runs_are_those_of_the_words(texts: list[str]) -> None:
    texts = [*texts, *TEXTS]
    for size in (1, 2, 3):
        runs, rows = block(*texts).runs(size)
        expected = named_runs(texts, size)
        assert rows.tolist() == [row for row, _ in expected]
        of_run: dict[tuple[str, ...], int] = {}
        for (_, run), found in zip(expected, runs.tolist(), strict=True):
            assert of_run.setdefault(run, found) == found
        assert len(set(of_run.values())) == len(of_run)


def test_a_text_longer_than_a_block() -> None:
    long = "word " * 200_000
    words, counts = ngrams.words(["first", long, "last"])
    assert counts.tolist() == [1, 200_000, 1]
    assert len(set(words.tolist())) == 3


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_what_is_stored_is_read_again(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "WORDS_AT_ONCE", at_once)
    rows = [[1, 2, 3], [], [4], [5, 6, 7, 8]]
    asked = [2, 0, 1, 1]
    with tempfile.TemporaryFile() as file:
        store = WordStore(file)
        for row, count in zip(rows, asked, strict=True):
            store.append(np.array(row, np.uint64), np.array([len(row)]), np.array([count]))
        chosen = np.array([True, True, False, True])
        for only_asked in (True, False):
            found = [
                (row, words)
                for part in store.blocks(chosen, asked=only_asked)
                for row, words in zip(
                    part.rows.tolist(),
                    np.split(part.words, np.cumsum(part.counts)[:-1]),
                    strict=True,
                )
            ]
            assert [(row, words.tolist()) for row, words in found] == [
                (row, rows[row][: asked[row]] if only_asked else rows[row]) for row in (0, 1, 3)
            ]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_words_can_be_left_out(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "WORDS_AT_ONCE", at_once)
    rows, asked = [[1, 2, 3, 4, 5], [6, 7], [], [8, 9, 10]], [4, 2, 0, 2]
    everything = np.ones(4, np.bool_)

    def read(store: WordStore, rows: Flags, asked: bool) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for part in store.blocks(rows, asked=asked):
            words = np.split(part.words, np.cumsum(part.counts)[:-1])
            found.update(zip(part.rows.tolist(), [own.tolist() for own in words], strict=True))
        return found

    with tempfile.TemporaryFile() as file:
        store = WordStore(file)
        for row, count in zip(rows, asked, strict=True):
            store.append(np.array(row, np.uint64), np.array([len(row)]), np.array([count]))
        samples = store.asked([np.array([3, 0]), np.array([2])])
        assert [[words.tolist() for words in sample] for sample in samples] == [
            [[8, 9], [1, 2, 3, 4]], [[]],
        ]  # fmt: skip
        assert store.left_out(0) == (0, 0)
        store.leave_out(np.array([1, 0, 0, 1], np.int32), np.array([2, 1, 0, 0], np.int32))
        assert store.left_out(0) == (1, 2)
        assert read(store, everything, True) == {0: [2], 1: [6], 2: [], 3: [9]}
        assert read(store, everything, False) == {0: [2, 5], 1: [6], 2: [], 3: [9, 10]}
        assert read(store, np.arange(4) % 3 == 0, False) == {0: [2, 5], 3: [9, 10]}


def test_an_empty_store() -> None:
    with tempfile.TemporaryFile() as file:
        assert list(WordStore(file).blocks(np.zeros(0, np.bool_), asked=True)) == []


@given(some.lists(some.integers(0, 2**64 - 1)), some.lists(some.integers(0, 20)))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_a_set_of_hashes(known: list[int], asked: list[int]) -> None:
    found = HashSet(np.array(known, np.uint64))
    places, numbers = found.find(np.array(asked + known, np.uint64))
    assert places.tolist() == [i for i, hash in enumerate(asked + known) if hash in set(known)]
    assert found.hashes[numbers].tolist() == [(asked + known)[i] for i in places.tolist()]


def test_ranges() -> None:
    found = ngrams.spread(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert found.tolist() == [5, 6, 9, 10, 11]
