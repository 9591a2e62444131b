"""What BM25 finds for a question."""

from __future__ import annotations

import math
from collections import Counter

from tasks.evaluation import retrieval
from tasks.evaluation.metrics import words

TEXTS = [
    "the truck is late",
    "customs holds the goods, customs asks for papers",
    "two pallets are damaged",
    "the truck broke down, the truck waits",
    "the truck is late",
]


def test_the_best_comes_first_and_equals_in_order() -> None:
    questions = ["is the truck late?", "Customs!", "what of pallets"]
    found = retrieval.search(questions, TEXTS, range(len(TEXTS)), 3)
    assert found == [(0, 4, 3), (1,), (2,)]


def test_what_shares_no_word_is_not_found() -> None:
    assert retrieval.search(["zebra", ""], TEXTS, TEXTS, 3) == [(), ()]
    assert retrieval.search(["truck"], [], [], 3) == [()]
    assert retrieval.search(["truck"], ["", "?!"], ["a", "b"], 3) == [()]


def test_scores_are_those_of_the_formula() -> None:
    """Lucene's BM25 by hand, with k1 = 1.5 and b = 0.75."""
    tokens = [words(text) for text in TEXTS]
    mean = sum(map(len, tokens)) / len(tokens)

    def score(question: str, at: int) -> float:
        total, counts = 0.0, Counter(tokens[at])
        for word in words(question):
            holding = sum(word in text for text in tokens)
            idf = math.log(1 + (len(tokens) - holding + 0.5) / (holding + 0.5))
            norm = 1.5 * (1 - 0.75 + 0.75 * len(tokens[at]) / mean)
            total += idf * counts[word] / (counts[word] + norm)
        return total

    question = "the truck asks for pallets"
    ranked = sorted(range(len(TEXTS)), key=lambda at: (-score(question, at), at))
    assert retrieval.search([question], TEXTS, range(len(TEXTS)), 5) == [tuple(ranked)]


def test_languages_without_spaces() -> None:
    texts = ["荷物が遅れています", "税関で止まっています"]
    assert retrieval.search(["税関"], texts, texts, 1) == [(texts[1],)]
