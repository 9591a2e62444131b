"""Who trains and who is tested, and that no near-duplicate crosses."""

import random
from typing import Any

import pytest

from tasks.dataset import splits
from tasks.dataset.faults import RowError
from tasks.dataset.splits import Item
from tasks.params import Format

WORDS = [f"w{number}" for number in range(200)]


def section(**changes: Any) -> Format:
    split = {
        "strategy": "time",
        "test_from": "2026-08-31",
        "test_share": 0.2,
        "validation_share": 0.1,
    }
    values = {
        "max_tokens": 256,
        "near_duplicates": {"threshold": 0.7, "shingle_words": 3, "permutations": 128},
        "split": {**split, **changes},
        "hard_test_share": 0.25,
    }
    return Format.model_validate(values)


def item(id: str, text: str, **changes: Any) -> Item:
    time = changes.pop("time", "2026-08-01")
    values = {"kind": "chat", "source": "s", "role": "train", "group": None, **changes}
    return Item(**values, id=id, text=text, time=splits.instant(time) if time else None)


def message(seed: int, words: int = 20) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def near(text: str) -> str:
    return f"again: {text}"


def where(items: list[Item], settings: Format, seed: int = 1) -> dict[str, str]:
    """Split or reason by id."""
    made = splits.plan(items, settings, seed)
    return {
        row.id: place.reason if isinstance(place, RowError) else place
        for row, place in zip(items, made.where, strict=True)
    }


FILLER = [item(f"f{n:02}", message(1000 + n)) for n in range(40)]


def test_the_test_begins_on_a_day() -> None:
    found = where(
        [
            *FILLER,
            item("before", message(1), time="2026-08-30T23:59:59Z"),
            item("after", message(2), time="2026-08-31T00:00:00Z"),
            item("before in UTC", message(3), time="2026-08-31T01:00:00+02:00"),
            item("never", message(4), time=None),
            item("pair after", message(5), time="2026-09-01", kind="preference"),
            item("pair never", message(6), time=None, kind="preference"),
            item("regression", message(7), time=None, role="regression"),
        ],
        section(),
    )
    assert found["before"] in ("train", "validation")
    assert found["after"] == "test"
    assert found["before in UTC"] in ("train", "validation")
    assert found["never"] == found["pair never"] == "no_time"
    assert found["pair after"] == "in_test_window"
    assert found["regression"] == "regression"


def test_what_resembles_a_held_out_row_does_not_train() -> None:
    test, asked = message(1), message(2)
    items = [
        *FILLER,
        item("test", test, time="2026-09-01"),
        item("leak", near(test)),
        item("leak of a leak", near(near(test))),
        item("pair", near(test), kind="preference"),
        item("regression", asked, role="regression", time=None),
        item("learned", near(asked)),
    ]
    found = where(items, section())
    assert found["test"] == "test"
    assert found["regression"] == "regression"
    leaks = ("leak", "leak of a leak", "pair", "learned")
    assert {found[name] for name in leaks} == {"leak"}
    made = splits.plan(items, section(), 1)
    assert (made.leaks, made.training_rows, made.clusters) == (4, 44, 2)
    error = made.where[41]
    assert isinstance(error, RowError)
    assert error.detail == "nearly the same as s test, which is held out"


def test_one_row_of_a_cluster_is_kept_the_first_by_time_then_id() -> None:
    text, late = message(1), message(2)
    found = where(
        [
            *FILLER,
            item("c", text, time="2026-07-02"),
            item("b", near(text), time="2026-07-01T12:00:00"),
            item("a", near(near(text)), time="2026-07-01T12:00:00Z"),
            item("pair", near(text), kind="preference"),
            item("pair again", text, kind="preference", time="2026-08-02"),
            item("t1", late, time="2026-09-01"),
            item("t2", near(late), time="2026-09-02"),
        ],
        section(),
    )
    assert found["a"] in ("train", "validation")
    assert found["b"] == found["c"] == found["pair again"] == "near_duplicate"
    assert (
        found["pair"]
        == {"train": "preferences", "validation": "preferences_validation"}[found["a"]]
    )
    assert (found["t1"], found["t2"]) == ("test", "near_duplicate")


def crowd() -> list[Item]:
    """500 rows: clusters of one to four, chats and preferences, a few groups."""
    rng = random.Random(3)
    items: list[Item] = []
    for number in range(220):
        text = message(number)
        for copy in range(rng.choice((1, 1, 2, 3, 4))):
            items.append(
                item(
                    f"{number}.{copy}",
                    f"{text} {'x' * copy}",
                    kind=rng.choice(("chat", "chat", "preference")),
                    group=f"g{rng.randrange(60)}" if rng.random() < 0.2 else None,
                    time=None,
                )
            )
    rng.shuffle(items)
    return items


@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_never_cuts_a_cluster_or_a_group(seed: int) -> None:
    items = crowd()
    settings = section(strategy="random", test_from=None)
    found = where(items, settings, seed)
    sides = {
        "train": "train", "preferences": "train", "validation": "validation",
        "preferences_validation": "validation", "test": "test", "leak": "test",
    }  # fmt: skip
    for key in (lambda row: row.id.split(".")[0], lambda row: row.group):
        together: dict[str, set[str]] = {}
        for row in items:
            if key(row) and found[row.id] != "near_duplicate":
                together.setdefault(key(row), set()).add(sides[found[row.id]])
        assert all(len(met) == 1 for met in together.values())
    chats = [row for row in items if row.kind == "chat"]
    tested = [row for row in chats if found[row.id] == "test"]
    copies = [row for row in chats if found[row.id] == "near_duplicate"]
    assert 0.15 < len(tested) / (len(chats) - len(copies)) < 0.25


def test_the_seed_decides_and_nothing_else() -> None:
    items = crowd()
    settings = section(strategy="random", test_from=None)
    first = where(items, settings, 1)
    assert where(items, settings, 1) == first
    assert where(items[::-1], settings, 1) == first
    assert where(items, settings, 2) != first


def test_a_new_row_moves_few_others() -> None:
    items = [item(str(n), message(n)) for n in range(400)]
    settings = section()
    before = where(items, settings)
    after = where([*items, item("new", message(9999))], settings)
    assert sum(before[id] != after[id] for id in before) <= 2


@pytest.mark.parametrize(("rows", "share", "validation"), [(1, 0.1, 0), (2, 0.9, 1), (5, 0.1, 1)])
def test_small_data_keeps_rows_to_train_on(rows: int, share: float, validation: int) -> None:
    items = [item(str(n), message(n)) for n in range(rows)]
    found = list(where(items, section(validation_share=share)).values())
    assert found.count("validation") == validation
    assert found.count("train") == rows - validation


def test_the_hard_test_is_what_training_resembles_least() -> None:
    known = [f"{row.text.rsplit(' ', 8)[0]} {message(50 + n, 8)}" for n, row in enumerate(FILLER)]
    items = [
        *FILLER,
        *(item(f"known{n}", known[n], time="2026-09-01") for n in range(6)),
        item("new1", "a carrier nobody knows", time="2026-09-01"),
        item("new2", "another lane altogether", time="2026-09-01"),
    ]
    made = splits.plan(items, section(), 1)
    assert {items[index].id for index in made.hard} == {"new1", "new2"}
    assert made.hard_similarity == 0.0


def test_ties_among_the_hardest_are_settled_by_id() -> None:
    items = [*FILLER, *(item(f"t{n}", f"zz{n}", time="2026-09-01") for n in (3, 1, 4, 2))]
    made = splits.plan(items, section(), 1)
    assert {items[index].id for index in made.hard} == {"t1"}
