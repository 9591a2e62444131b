"""What the tests of a check say of arrivals with and without a shift."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from drift_rows import LIKE, chat, params, side

from tasks.drift import columns, comparison
from tasks.drift.columns import Side
from tasks.drift.comparison import Comparison, Outcome

Compare = Callable[..., Comparison]


@pytest.fixture
def compare() -> Compare:
    def compared(before: Side, after: Side, **changes: object) -> Comparison:
        drift = params().drift.model_copy(update={"permutations": 299, **changes})
        near = params().format.near_duplicates
        (found,) = comparison.compare({LIKE: (before, after)}, drift, near, 1)
        return found

    return compared


def firing(found: Comparison) -> set[str]:
    return {test.name for test in found.tests if test.fires}


def test_without_a_shift_nothing_fires(compare: Compare) -> None:
    found = compare(side("none", 800, 1), side("none", 400, 2))
    assert firing(found) == set()
    assert found.reasons == []
    assert {test.name for test in found.tests} == {
        "words", "prompt length", "rare words", "category", "eta", "language",
        "category given the prompt", "eta given the prompt", "near-duplicates", "rejected rows",
    }  # fmt: skip
    assert all(test.level == pytest.approx(0.01 / 3) for test in found.tests)


def test_a_new_category_is_named(compare: Compare) -> None:
    found = compare(side("none", 800, 1), side("category", 400, 2))
    assert "category" in firing(found)
    assert found.details["fields"]["category"][0]["class"] == "dangerous_goods"
    assert found.details["words"][0]["word"] == "category=dangerous_goods"
    (said,) = [reason for reason in found.reasons if "mix of category" in reason]
    assert said.startswith(f"{LIKE}: the mix of category changed (Cramér's V 0.")
    assert "most of all 'dangerous_goods' (" in said
    assert found.details["look_at"][0]["why"] == "most unlike training"


def test_a_category_that_the_contract_does_not_know_shows_as_rejected_rows(
    compare: Compare,
) -> None:
    found = compare(side("none", 800, 1), side("unknown", 400, 2))
    assert firing(found) == {"rejected rows"}
    (said,) = found.reasons
    assert "of the rows that arrived are rejected (" in said
    assert "unknown_label" in said


def test_new_words_are_named(compare: Compare) -> None:
    found = compare(side("none", 800, 1), side("vocabulary", 400, 2))
    assert firing(found) == {"words", "rare words"}
    assert "consignment" in [one["word"] for one in found.details["words"]]


def test_answers_by_other_rules_are_noticed(compare: Compare) -> None:
    found = compare(side("none", 800, 1), side("labels", 400, 2))
    assert "category given the prompt" in firing(found)
    (said,) = [reason for reason in found.reasons if "given" in reason or "follows" in reason]
    assert "that is now" in said


def test_rules_that_leave_the_mix_of_answers_alone_are_noticed_all_the_same(
    compare: Compare,
) -> None:
    """Two answers change places: neither a word nor the share of a class tells, only both together."""
    words = ("late", "broken", "customs", "lost")

    def rows(first: int, swapped: bool) -> list[dict[str, object]]:
        rng = Random(first)
        made = []
        for number in range(first, first + 300):
            word = rng.choice(words)
            other = {"late": "broken", "broken": "late"}.get(word, word) if swapped else word
            filler = " ".join(f"w{rng.randrange(400)}x" for _ in range(8))
            made.append(chat(number, f"{filler} {word}", f'{{"kind":"{other}"}}'))
        return made

    before, after = rows(0, False), rows(1000, True)
    found = compare(Side(before, 300), Side(after, 300))
    assert firing(found) == {"kind given the prompt"}
    assert found.tests[[t.name for t in found.tests].index("kind given the prompt")].now < 0.7


def test_free_text_has_the_length_of_its_answers_and_no_classes(compare: Compare) -> None:
    def rows(first: int, words: int) -> Side:
        rng = Random(first)

        def text(count: int) -> str:
            return " ".join(f"w{rng.randrange(300)}" for _ in range(count))

        every = [
            chat(number, text(12), text(rng.randrange(words, 2 * words)))
            for number in range(first, first + 250)
        ]
        return Side(every, 250)

    found = compare(rows(0, 10), rows(1000, 30))
    assert "answer length" in firing(found)
    assert found.details["fields"].keys() == {"language"}
    assert "characters in the middle before" in "\n".join(found.reasons)


def test_significance_without_effect_does_not_fire() -> None:
    test = Outcome("prompt length", "", 1e-9, 0.1, 0.15, None, None, 9, 9, "says")
    found = comparison.decide([Comparison(LIKE, 9, 9, [test], {})], params().drift)
    assert firing(found[0]) == set()
    large = dataclasses.replace(test, effect=0.15)
    found = comparison.decide([Comparison(LIKE, 9, 9, [large], {})], params().drift)
    assert found[0].reasons == [f"{LIKE}: says"]


def test_effect_without_significance_does_not_fire() -> None:
    """Holm: the p-value times the number of tests of all sources, those that are smaller left out."""
    tests = [
        Outcome(name, "", p_value, 1.0, 0.1, None, None, 9, 9, name)
        for name, p_value in (("a", 0.0008), ("b", 0.0012), ("c", 0.9), (comparison.WORDS, 0.003))
    ]
    one = Comparison(LIKE, 9, 9, tests, {})
    (found,) = comparison.decide([one], params().drift)
    assert firing(found) == {"a", "b", comparison.WORDS}
    assert [test.adjusted for test in found.tests] == pytest.approx([0.0024, 0.0024, 0.9, 0.003])
    both = comparison.decide([one, one], params().drift)  # twice as many tests, and classifiers
    assert firing(both[0]) == set()


def test_few_rows_are_not_compared(compare: Compare) -> None:
    before = side("none", 800, 1)
    after = side("category", 400, 2)
    few = Side(after.records[:150], 150)
    assert compare(before, few).tests == []
    rejected = Side(after.records[:150], 150, {"unknown_label": 150})
    found = compare(before, rejected)  # enough rows came, too few of them are accepted
    assert [test.name for test in found.tests] == ["rejected rows"]
    assert firing(found) == {"rejected rows"}


def test_a_habit_of_sending_twice_is_no_drift(compare: Compare) -> None:
    """One in five rows comes twice: of all rows of training as many as of the arrivals, and hardly
    any of a few that are drawn from it."""

    def sent(rows: int, seed: int, share: float) -> Side:
        draw = Random(seed)
        made: list[dict[str, Any]] = []
        while len(made) < rows:
            text = " ".join(f"w{draw.randrange(3000)}" for _ in range(15))
            for _ in range(1 + (draw.random() < share)):
                made.append(chat(len(made), text, "yes"))
        return Side(made[:rows], rows)

    before = sent(3000, 1, 0.2)
    near, least = params().format.near_duplicates, params().drift.effects.duplicates
    same = comparison._near_duplicates(before, sent(300, 2, 0.2), near, least, 1)
    assert same.effect < least
    assert same.p_value > 0.01
    more = comparison._near_duplicates(before, sent(300, 2, 0.5), near, least, 1)
    assert more.effect > least
    assert more.p_value < 0.001


def test_copies_of_one_row_are_one_row(compare: Compare) -> None:
    """Near-duplicates make no evidence of their own; that there are so many is what is told."""
    before = side("none", 800, 1)
    many = [dict(before.records[0], id=f"c{at}") for at in range(400)]
    found = compare(before, Side(many, 400))
    assert firing(found) == {"near-duplicates"}
    assert [test.name for test in found.tests] == ["near-duplicates", "rejected rows"]


def test_cramers_v_does_not_hang_on_the_sizes_of_the_sides() -> None:
    even = comparison.chi_square({"a": 500, "b": 500}, {"a": 700, "b": 300})
    uneven = comparison.chi_square({"a": 5000, "b": 5000}, {"a": 70, "b": 30})
    assert even[1] == pytest.approx(uneven[1], abs=1e-6)
    assert even[1] == pytest.approx(
        (2 * 100**2 / (2 * 600) / 1000 + 2 * 100**2 / 800 / 1000) ** 0.5
    )
    assert even[0] < uneven[0]
    assert comparison.chi_square({"a": 9}, {"a": 9}) == (1.0, 0.0)


def test_rare_classes_are_taken_together() -> None:
    p_value, _ = comparison.chi_square(
        {"a": 200, **{f"r{at}": 1 for at in range(40)}},
        {"a": 200, **{f"s{at}": 1 for at in range(40)}},
    )
    assert p_value == 1.0


def test_rows_of_a_conversation_are_one_unit() -> None:
    rows = [chat(at, f"text {at}", "yes", group=f"g{at // 10}") for at in range(40)]
    assert len(set(columns.units(rows, np.arange(40)).tolist())) == 4
    joined = np.arange(40)
    joined[39] = 0  # a near-duplicate of a row of another conversation
    assert len(set(columns.units(rows, joined).tolist())) == 3


def test_an_answer_without_the_field_is_a_class() -> None:
    given = ['{"kind":"a"}'] * 30 + ['{"kind":"b","more":1}'] * 30 + ["free text"] * 10
    found = columns.classes(given, 60)
    assert list(found) == ["kind", "more"]
    assert found["kind"][-1] == columns.NONE
    assert columns.classes(["yes", "no"] * 20, 40) == {columns.WHOLE: ["yes", "no"] * 20}
    assert columns.classes([f"a long answer {at}" for at in range(40)], 40) == {}


def test_numbers_are_one_word() -> None:
    bags = columns._bags([["awb", "60714"], ["awb", "11223"], ["7"]])
    assert bags.vocabulary == ["awb", "00000", "0"]
    assert bags.matrix().toarray().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
