"""Near-duplicate clusters: complete, exact and the same every time."""

import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.dataset import duplicates
from tasks.params import NearDuplicates

SETTINGS = NearDuplicates(threshold=0.7, shingle_words=3, permutations=128)
HASHES = [12627399942108153624, 2248119051417481317, 16640990589691779935, 16661664912040621101]
"""Of "Ein Wort, 你好": clusters of one version must be those of the next."""
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


def near_pairs(texts: list[str], wanted: NearDuplicates) -> list[tuple[int, int]]:
    """All pairs at or above the threshold."""
    sets = [duplicates.shingles(text, wanted.shingle_words) for text in texts]
    return [
        (left, right)
        for left, right in combinations(range(len(texts)), 2)
        if duplicates.jaccard(sets[left], sets[right]) >= wanted.threshold
    ]


def compared_all(texts: list[str], wanted: NearDuplicates) -> list[int]:
    """The clusters by comparing every pair."""
    partition = duplicates.Partition(len(texts))
    for left, right in near_pairs(texts, wanted):
        partition.join(left, right)
    return partition.names()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_finds_what_comparing_every_pair_finds(threshold: float) -> None:
    wanted = SETTINGS.model_copy(update={"threshold": threshold})
    texts = near_copies(2)
    assert duplicates.clusters(texts, wanted, 7).names() == compared_all(texts, wanted)


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text("ab \n.ß你好ก็", max_size=12),
        st.lists(st.sampled_from(["Go", "go", "on", "STRASSE", "straße", "3"]), max_size=8).map(
            " ".join
        ),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.integers(1, 4))
def test_whatever_the_texts_no_cluster_holds_a_guess(
    texts: list[str], threshold: float, size: int
) -> None:
    wanted = NearDuplicates(threshold=threshold, shingle_words=size, permutations=128)
    exact = compared_all(texts, wanted)
    found = duplicates.clusters(texts, wanted, 7).names()
    assert all(exact[name] == exact[index] for index, name in enumerate(found))
    # A pair at the threshold is missed now and then, by design; texts with equal shingles never are.
    sets = [duplicates.shingles(text, size) for text in texts]
    assert all(found[index] == found[sets.index(own)] for index, own in enumerate(sets))


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=6))
def test_hashes_are_those_of_the_words(texts: list[str]) -> None:
    hashes, counts = duplicates.word_hashes(texts)
    found = [duplicates.words(text) for text in texts]
    assert counts.tolist() == [len(each) for each in found]
    flat = [word for each in found for word in each]
    assert len(dict(zip(flat, hashes.tolist(), strict=True))) == len(set(hashes.tolist()))
    alone = [int(duplicates.word_hashes([word])[0][0]) for word in flat]
    assert alone == hashes.tolist()  # whatever stands around a word


def test_recall_on_graded_copies() -> None:
    rng = random.Random(3)
    texts = []
    for _ in range(400):
        own = [rng.choice(WORDS) for _ in range(60)]
        texts.append(" ".join(own))
        for place in rng.sample(range(60), rng.randrange(6)):
            own[place] = rng.choice(WORDS)
        texts.append(" ".join(own))
    near = near_pairs(texts, SETTINGS)
    found = duplicates.clusters(texts, SETTINGS, 1).names()
    assert len(near) > 150
    assert sum(found[left] == found[right] for left, right in near) >= 0.97 * len(near)


def test_the_seed_of_the_hashes_does_not_show() -> None:
    texts = near_copies(3)
    assert len({str(duplicates.clusters(texts, SETTINGS, seed).names()) for seed in range(4)}) == 1


def test_blocks_join_up(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = near_copies(1)
    whole = duplicates.clusters(texts, SETTINGS, 1).names()
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    assert duplicates.clusters(texts, SETTINGS, 1).names() == whole


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_does_not_show(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = near_copies(1)
    expected = duplicates.clusters(texts, SETTINGS, 1).names()
    monkeypatch.setattr(duplicates, "THREADS", threads)
    monkeypatch.setattr(duplicates, "BLOCK", 500)
    assert duplicates.clusters(texts, SETTINGS, 1).names() == expected


def test_hashes_are_the_same_in_every_process_and_version() -> None:
    assert duplicates.word_hashes(["Ein Wort, 你好"])[0].tolist() == HASHES
    code = "from tasks.dataset import duplicates as d; print(d.word_hashes(['Wort'])[0].tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"[{HASHES[1]}]\n"


def test_a_chain_is_one_cluster() -> None:
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join(words[start : start + 32]) for start in (0, 4, 8)]
    sets = [duplicates.shingles(text, 3) for text in texts]
    assert duplicates.jaccard(sets[0], sets[1]) >= 0.7 > duplicates.jaccard(sets[0], sets[2])
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 0, 0]


def test_case_and_punctuation_do_not_count() -> None:
    texts = ["Where is it?", "WHERE - is; it", "where is her", "?!", "?!", "..", "", ""]
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 0, 2, 3, 3, 5, 6, 6]


class Counted(duplicates._Comparison):
    """Counts the pairs that are compared."""

    pairs = 0

    def _compare(self, left, right):  # type: ignore[no-untyped-def]
        Counted.pairs += len(left)
        return super()._compare(left, right)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr(Counted, "pairs", 0)
    monkeypatch.setattr(duplicates, "_Comparison", Counted)
    return Counted


@pytest.mark.parametrize("text", ["", "?!", "one", "the same words again and again " * 20])
def test_equal_texts_are_not_compared(text: str, counted: type[Counted]) -> None:
    assert set(duplicates.clusters([text] * 20_000, SETTINGS, 1).names()) == {0}
    assert counted.pairs == 0


def test_a_crowd_of_near_duplicates_is_compared_about_once_each(counted: type[Counted]) -> None:
    base = [f"w{number}" for number in range(100)]
    texts = [" ".join([*base, f"order{number}"]) for number in range(5_000)]
    assert set(duplicates.clusters(texts, SETTINGS, 1).names()) == {0}
    assert counted.pairs < 2 * len(texts)


def test_boilerplate_is_given_up_after_a_while(
    counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "PATIENCE", 100)
    rng = random.Random(5)
    base = [f"w{number}" for number in range(60)]
    texts = [" ".join([*base, *(rng.choice(WORDS) for _ in range(25))]) for _ in range(1_000)]
    assert duplicates.clusters(texts, SETTINGS, 1).names() == list(range(1_000))
    assert counted.pairs < 101 * len(texts)


def test_copies_are_found_among_forms_that_fill_every_bucket() -> None:
    rng = random.Random(6)
    form = [f"w{number}" for number in range(20)]
    texts = [" ".join([*form, *(rng.choice(WORDS) for _ in range(20))]) for _ in range(500)]
    copies = [text.replace("w10 ", "") for text in texts[::5]]
    found = duplicates.clusters(texts + copies, SETTINGS, 1).names()
    near = near_pairs(texts + copies, SETTINGS)
    assert len(near) >= 100
    assert sum(found[left] == found[right] for left, right in near) >= 0.97 * len(near)


def test_long_texts() -> None:
    rng = random.Random(7)
    long = " ".join(str(rng.randrange(10**6)) for _ in range(60_000))
    texts = [long, "short text", long + " and a tail", "x" * 1_000_000, "x" * 999_999 + "y", long]
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 1, 0, 3, 4, 0]


@pytest.mark.parametrize(
    "text",
    [
        "我想知道我的包裹现在在哪里因为它上周就应该送到了请尽快告诉我",
        "荷物が先週届くはずだったのですがまだ届いていませんので状況を教えてください",
        "ฉันต้องการทราบว่าพัสดุของฉันอยู่ที่ไหนเพราะควรจะมาถึงตั้งแต่สัปดาห์ที่แล้ว",
    ],
)
def test_scripts_without_spaces(text: str) -> None:
    assert len(duplicates.words(text)) > 20
    other = text[::-1]
    texts = [text, text + text[-1], other, text[1:]]
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 0, 2, 0]


def test_words_of_mixed_scripts() -> None:
    assert duplicates.words("Wi-Fi是wifi吗? 서울에서 2台") == [
        *("wi", "fi", "是", "wifi", "吗"),
        *("서울에서", "2", "台"),
    ]


def test_lone_surrogates_and_nul() -> None:
    texts = ["a\ud800b c", "a b c", "\ud800", "\ud800", "a\0b c"]
    assert duplicates.clusters(texts, SETTINGS, 1).names() == [0, 0, 2, 2, 0]


def test_partition() -> None:
    partition = duplicates.Partition(6)
    partition.join(4, 2)
    partition.join_pairs(np.array([5, 3]), np.array([4, 1]))
    assert partition.names() == [0, 1, 2, 1, 2, 2]
    assert partition.find(5) == 2
    partition.join_pairs(np.arange(5), np.arange(1, 6))
    assert partition.labels().tolist() == [0] * 6


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
    wanted = NearDuplicates(threshold=threshold, shingle_words=3, permutations=permutations)
    count, rows = duplicates.bands(wanted)
    assert count * rows <= permutations
    assert rows == 1 or (1 - threshold**rows) ** count <= duplicates.MISSED
    assert duplicates.bands(SETTINGS) == (32, 4)
