"""Near-duplicate clusters: complete, exact and the same every time."""

import random
from itertools import combinations

import pytest

from tasks.dataset import duplicates
from tasks.params import NearDuplicates

SETTINGS = NearDuplicates(threshold=0.7, shingle_words=3, permutations=128)
WORDS = [f"word{number}" for number in range(300)]


def near_copies(copies: int, seed: int = 1) -> list[str]:
    """Texts of 30 words and copies of them with a word or two changed, shuffled."""
    rng = random.Random(seed)
    texts = []
    for _ in range(100):
        words = [rng.choice(WORDS) for _ in range(30)]
        texts.append(" ".join(words))
        for _ in range(copies):
            changed = [*words]
            for _ in range(rng.randrange(3)):
                changed[rng.randrange(30)] = rng.choice(WORDS)
            texts.append(" ".join(changed))
    rng.shuffle(texts)
    return texts


def compared_all(texts: list[str], settings: NearDuplicates) -> list[int]:
    """The clusters by comparing every pair."""
    sets = [duplicates.shingles(text, settings.shingle_words) for text in texts]
    partition = duplicates.Partition(len(texts))
    for left, right in combinations(range(len(texts)), 2):
        if duplicates.jaccard(sets[left], sets[right]) >= settings.threshold:
            partition.join(left, right)
    return partition.names()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_finds_what_comparing_every_pair_finds(threshold: float) -> None:
    settings = SETTINGS.model_copy(update={"threshold": threshold})
    texts = near_copies(2)
    assert duplicates.clusters(texts, settings, 7).names() == compared_all(texts, settings)


def test_the_seed_of_the_hashes_does_not_show() -> None:
    texts = near_copies(3)
    assert len({str(duplicates.clusters(texts, SETTINGS, seed).names()) for seed in range(4)}) == 1


def test_blocks_join_up(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = near_copies(1)
    whole = duplicates.clusters(texts, SETTINGS, 1).names()
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    assert duplicates.clusters(texts, SETTINGS, 1).names() == whole


def test_a_chain_is_one_cluster() -> None:
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join(words[start : start + 32]) for start in (0, 4, 8)]
    sets = [duplicates.shingles(text, 3) for text in texts]
    assert duplicates.jaccard(sets[0], sets[1]) >= 0.7 > duplicates.jaccard(sets[0], sets[2])
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 0, 0]


def test_case_and_punctuation_do_not_count() -> None:
    texts = ["Where is it?", "WHERE - is; it", "where is her", "?!", "?!", "..", "", ""]
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 0, 2, 3, 3, 5, 6, 6]


def test_no_texts_and_one_text() -> None:
    assert duplicates.clusters([], SETTINGS, 1).names() == []
    assert duplicates.clusters(["one"], SETTINGS, 1).names() == [0]


def test_shingles() -> None:
    assert duplicates.shingles("A b, C d", 3) == {"a b c", "b c d"}
    assert duplicates.shingles("A b", 3) == {"a b"}
    assert duplicates.jaccard(frozenset("abc"), frozenset("bcd")) == 0.5


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_bands_miss_few_pairs_where_that_is_possible(threshold: float, permutations: int) -> None:
    settings = NearDuplicates(threshold=threshold, shingle_words=3, permutations=permutations)
    count, rows = duplicates.bands(settings)
    assert count * rows <= permutations
    assert rows == 1 or (1 - threshold**rows) ** count <= duplicates.MISSED
    assert duplicates.bands(SETTINGS) == (32, 4)
