"""Weights of sources, and general rows in the training mix."""

from __future__ import annotations

from collections import Counter

import pytest
from planned_rows import Planned, Row, split

from tasks.dataset import mixing


def planned(*rows: Row) -> Planned:
    """Rows on their sides, without a validation part of more than a row."""
    return Planned(rows).split(split("time", test_from="2027-01-01", validation_share=0.001), 1)


def many(count: int, source: str = "s", **changes: str) -> list[Row]:
    return [Row(f"{source}{number}", source=source, **changes) for number in range(count)]


def copies(found: Planned, source: str) -> Counter[int]:
    """How many trained rows of a source come how often."""
    train = found.plan.splits()["train"]
    return Counter(
        int(found.plan.copies[index])
        for index, row in enumerate(found.rows)
        if train[index] and row.source == source
    )


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1, {1: 100}), (2, {2: 100}), (0.5, {1: 50}), (2.25, {2: 75, 3: 25}), (0, {})],
)
def test_a_weight_is_how_often_rows_come(weight: float, expected: dict[int, int]) -> None:
    rows = [*many(100, "a"), *many(100, "b")]
    found = planned(*rows, *(Row(f"v{number}", "v", source="v") for number in range(2)))
    found.plan.validation[:] = False  # the one row of it may be any
    mixing.weigh(found.plan, {"a": weight}, 1)
    assert copies(found, "a") == expected
    assert copies(found, "b") == {1: 100}
    left_out = [id for id, place in found.where().items() if place == "not_in_mix"]
    assert len(left_out) == 100 - sum(expected.values())
    if left_out:
        assert found.detail(left_out[0]) == "format.mix takes other rows of its source"


def test_weights_hold_for_all_that_is_trained_on_and_nothing_else() -> None:
    pairs = [Row(f"p{number}", kind="preference", source="p") for number in range(10)]
    texts = [Row(f"t{number}", kind="text", source="t") for number in range(10)]
    tests = [Row(f"x{number}", role="regression", source="x") for number in range(10)]
    found = planned(*many(10, "a"), *pairs, *texts, *tests)
    mixing.weigh(found.plan, {"a": 2, "p": 0.5, "t": 3, "x": 0}, 1)
    places = Counter(found.where().values())
    validation = found.plan.validation
    assert places["validation"] == places["preferences_validation"] == 1
    assert (found.plan.copies[validation] == 1).all()
    assert places["regression"] == 10
    assert places["preferences"] == 4  # half of nine, to the even number
    assert set(found.plan.copies[found.plan.splits()["corpus"]].tolist()) == {3}


def test_a_pattern_weighs_the_files_that_fit_it() -> None:
    found = planned(*many(10, "parts/a.jsonl"), *many(10, "parts/b.jsonl"), *many(10, "c"))
    found.plan.validation[:] = False
    mixing.weigh(found.plan, {"parts/*.jsonl": 2, "parts/b.jsonl": 3}, 1)
    assert copies(found, "parts/a.jsonl") == {2: 10}
    assert copies(found, "parts/b.jsonl") == {3: 10}
    assert copies(found, "c") == {1: 10}


@pytest.mark.parametrize(("share", "joined"), [(0.0, 0), (0.2, 25), (0.5, 100), (0.9, 120)])
def test_general_rows_join_until_they_are_a_share(share: float, joined: int) -> None:
    found = planned(*many(100, "a"), *many(120, "g", role="general"))
    found.plan.validation[:] = False
    wanted, there = mixing.admit_general(found.plan, share, 1)
    assert (wanted, there) == (round(share / (1 - share) * 100), joined)
    places = Counter((row.source, found.where()[row.id]) for row in found.rows)
    assert places["g", "train"] == joined
    assert places["g", "not_in_mix"] == 120 - joined
    assert places["a", "train"] == 100


def test_repeated_rows_count_as_often_as_they_come() -> None:
    found = planned(*many(100, "a"), *many(120, "g", role="general"))
    found.plan.validation[:] = False
    mixing.weigh(found.plan, {"a": 2}, 1)
    assert mixing.admit_general(found.plan, 0.2, 1) == (50, 50)


def test_general_rows_do_not_share_a_group_with_validation() -> None:
    rows = [Row(f"a{number}", group=f"g{number}") for number in range(20)]
    general = [Row(f"b{number}", group=f"g{number}", role="general") for number in range(20)]
    found = Planned([*rows, *general]).split(
        split("time", test_from="2027-01-01", validation_share=0.5), 1
    )
    mixing.admit_general(found.plan, 0.9, 1)
    where = found.where()
    for number in range(20):
        expected = "train" if where[f"a{number}"] == "train" else "not_in_mix"
        assert where[f"b{number}"] == expected


def test_the_seed_and_the_names_decide() -> None:
    rows = [*many(40, "a"), *many(40, "g", role="general")]
    mixes = []
    for order, seed in ((rows, 1), (rows[::-1], 1), (rows, 2)):
        found = planned(*order)
        mixing.weigh(found.plan, {"a": 0.5}, seed)
        mixing.admit_general(found.plan, 0.3, seed)
        mixes.append(found.where())
    assert mixes[0] == mixes[1]
    assert mixes[0] != mixes[2]
