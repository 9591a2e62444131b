"""A sample is the same in any order, and takes whole conversations."""

from __future__ import annotations

from collections import Counter

from tasks.drift.sample import Sample


def rows(count: int, groups: int | None = None) -> list[dict[str, str | None]]:
    return [
        {"id": f"{at}", "source": "a", "group": None if groups is None else f"g{at % groups}"}
        for at in range(count)
    ]


def drawn(given: list[dict[str, str | None]], size: int, seed: int = 1) -> list[str | None]:
    sample = Sample(size, seed)
    for row in given:
        sample.add(row)
    assert sample.seen == len(given)
    return [row["id"] for row in sample]


def test_the_order_of_the_rows_does_not_matter() -> None:
    given = rows(500)
    assert len(drawn(given, 50)) == 50
    assert set(drawn(given, 50)) == set(drawn(given[::-1], 50))
    assert set(drawn(given, 50)) != set(drawn(given, 50, seed=2))
    assert drawn(given, 1000) == [f"{at}" for at in range(500)]  # all of them, as they came


def test_conversations_are_drawn_whole() -> None:
    found = Counter(int(id or 0) % 20 for id in drawn(rows(400, groups=20), 100))
    assert sorted(found.values()) == [20] * 5
