"""The test in slices."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tasks.evaluation import slices
from tasks.evaluation.rows import Row
from tasks.evaluation.slices import MIN_ROWS, Slice


def row(n: int, label: str = "a", **more: Any) -> Row:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": label}]
    settings = {"source": "s.jsonl", "id": str(n), "split": "test", "hard": False, "time": None}
    return Row(**{**settings, "group": None, "messages": messages, **more})


def measured(rows: list[Row], final: list[float], other: list[float], **more: Any) -> list[Slice]:
    lengths = more.pop("lengths", [5] * len(rows))
    found = slices.measure(rows, lengths, final, other, "classical", 0.95, 1, **more)
    json.dumps(found, allow_nan=False)
    return found


def names(found: list[Slice], kind: str) -> list[tuple[str, int]]:
    return [(one["name"], one["rows"]) for one in found if one["kind"] == kind]


def test_kinds_that_do_not_divide_the_rows_are_left_out() -> None:
    assert measured([row(n) for n in range(50)], [1.0] * 50, [1.0] * 50) == []


def test_no_rows() -> None:
    assert measured([], [], []) == []


def test_every_kind() -> None:
    rows = [
        row(
            n,
            "ab"[n % 2],
            source=f"{n % 2}.jsonl",
            hard=n % 3 == 0,
            time=f"2026-0{8 + n % 2}-01T00:00:00Z",
        )
        for n in range(120)
    ]
    found = measured(rows, [1.0] * 120, [0.0] * 120, lengths=[n % 60 for n in range(120)])
    assert names(found, "class") == [("a", 60), ("b", 60)]
    assert names(found, "source") == [("0.jsonl", 60), ("1.jsonl", 60)]
    assert names(found, "time") == [("2026-08", 60), ("2026-09", 60)]
    assert names(found, "hard") == [("hard test", 40), ("the rest of the test", 80)]
    assert names(found, "length") == [
        ("up to 19 tokens", 40),
        ("20 to 39 tokens", 40),
        ("more than 39 tokens", 40),
    ]
    assert {one["says"] for one in found} == {"better"}
    assert {one["other_name"] for one in found} == {"classical"}


def test_lengths_in_characters_and_of_equal_rows() -> None:
    lengths = [3] * 50 + [9] * 30
    rows = [row(n) for n in range(80)]
    found = measured(rows, [1.0] * 80, [1.0] * 80, lengths=lengths, unit="characters")
    assert names(found, "length") == [("up to 3 characters", 50), ("4 to 9 characters", 30)]


def test_quarters_of_a_long_time_and_rows_without_one() -> None:
    times = [f"20{25 + n // 12 % 2}-{n % 12 + 1:02}-05" for n in range(240)]
    rows = [row(n, time=time) for n, time in enumerate(times)]
    rows += [row(n) for n in range(240, 265)]
    found = measured(rows, [1.0] * 265, [1.0] * 265)
    assert names(found, "time") == [
        *((f"{year} Q{quarter}", 30) for year in (2025, 2026) for quarter in (1, 2, 3, 4)),
        ("no time", 25),
    ]


def test_small_slices_are_put_together() -> None:
    labels = ["a"] * 30 + ["b"] * 15 + ["c"] * 6
    rows = [row(n, label) for n, label in enumerate(labels)]
    found = measured(rows, [1.0] * 51, [0.0] * 51)
    assert names(found, "class") == [("a", 30), ("2 with fewer than 20 rows", 21)]
    assert found[1]["difference"]["value"] == 1.0


def test_one_that_is_too_small_is_told_without_numbers() -> None:
    rows = [row(n, hard=n < MIN_ROWS - 1) for n in range(60)]
    hard, rest = measured(rows, [1.0] * 60, [0.0] * 60)
    assert (hard["rows"], hard["says"], hard["p_value"], hard["p_holm"]) == (
        19,
        "too few rows",
        None,
        None,
    )
    assert hard["final"]["value"] is hard["difference"]["low"] is None
    assert rest["says"] == "better"


def test_many_slices_make_luck_likely() -> None:
    """In one of ten classes the final model wins 6 to 0, p = 0.031: of ten, that is noise."""
    rows = [row(n, "abcdefghij"[n // 30]) for n in range(300)]
    other = [0.0] * 6 + [1.0] * 294
    found = measured(rows, [1.0] * 300, other)
    first = found[0]
    assert (first["p_value"], first["p_holm"]) == (0.03125, 0.3125)
    assert first["difference"]["low"] > 0
    assert {one["says"] for one in found} == {"inside the noise"}


def test_worse_in_one_slice() -> None:
    rows = [row(n, "ab"[n // 50]) for n in range(100)]
    found = measured(rows, [1.0] * 50 + [0.0] * 50, [1.0] * 100)
    assert [one["says"] for one in found] == ["inside the noise", "worse"]


def test_numbers_that_are_no_outcomes() -> None:
    rows = [row(n, f"a text of its own {n}", hard=n < 40) for n in range(80)]
    other = [0.01 * (n % 40) for n in range(80)]
    final = [value + (0.1 if n < 40 else 0.0) for n, value in enumerate(other)]
    hard, rest = measured(rows, final, other)
    assert (hard["p_value"], hard["p_holm"], hard["says"]) == (0.0001, 0.0002, "better")
    assert (rest["p_value"], rest["says"]) == (1.0, "inside the noise")


def test_rows_that_the_metric_does_not_speak_of() -> None:
    rows = [row(n, hard=n < 40) for n in range(80)]
    found = measured(rows, [math.nan] * 10 + [1.0] * 70, [math.nan] * 10 + [1.0] * 70)
    assert names(found, "hard") == [("hard test", 30), ("the rest of the test", 40)]


def test_other_rows() -> None:
    with pytest.raises(ValueError, match="of the same rows, in the same order"):
        measured([row(1)], [1.0], [])
