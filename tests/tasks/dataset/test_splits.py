"""Who trains and who is tested, and that no cluster and no group is cut."""

import random
from collections import Counter
from typing import Any

import hypothesis.strategies as some
import pytest
from hypothesis import given, settings
from planned_rows import Planned, Row, split

from tasks.dataset import mixing, splits

NEW = "arrived/new.jsonl"
"""A source that by_source speaks of."""
STRATEGIES = {
    "time from a day": split("time", test_from="2026-08-20", test_share=None),
    "time, the newest": split("time"),
    "group": split("group"),
    "stratified": split("stratified"),
    "random": split("random"),
}
SIDE = {
    "train": "training", "validation": "training", "preferences": "training",
    "preferences_validation": "training", "corpus": "training", "test": "test",
    "regression": "regression",
}  # fmt: skip
REASONS = {
    "no_time", "no_group", "in_test_window", "leak", "near_duplicate", "in_regression", "not_in_mix",
}  # fmt: skip


def where(rows: list[Row], settings: Any, seed: int = 1) -> dict[str, str]:
    return Planned(rows).split(settings, seed).where()


def with_new(strategy: str, share: float = 0.3) -> Any:
    """The strategy, and a share of what arrived held out by itself."""
    return STRATEGIES[strategy].model_copy(update={"by_source": {NEW: share}})


def planted(count: int, seed: int, roles: list[str], sources: list[str]) -> list[Row]:
    """Rows of which many share a cluster, a group or both."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        kind = rng.choice(("chat", "chat", "chat", "preference", "text"))
        role = rng.choice(roles) if kind == "chat" else "train"
        cluster = rng.choice((None, f"c{rng.randrange(12)}"))
        group = rng.choice((None, None, f"g{rng.randrange(12)}"))
        time = rng.choice((None, *(f"2026-08-{rng.randint(1, 28):02}" for _ in range(5))))
        source = rng.choice(sources)
        answer = rng.choice("aaab")
        found.append(Row(str(number), cluster, kind, role, time, group, answer, source))
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("published", [False, True], ids=["", "with a published test"])
@pytest.mark.parametrize("arrived", [False, True], ids=["", "with a source cut by itself"])
@given(count=some.integers(1, 60), planting=some.integers(0, 10**6), seed=some.integers(0, 9))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_no_split_cuts_a_cluster_or_a_group(
    strategy: str, published: bool, arrived: bool, count: int, planting: int, seed: int
) -> None:
    roles = ["train", "train", "train", "general", "regression", "benchmark"]
    sources = ["s", "s", NEW] if arrived else ["s"]
    found = planted(count, planting, [*roles, "test"] if published else roles, sources)
    settings = with_new(strategy) if arrived else STRATEGIES[strategy]

    def places(rows: list[Row]) -> dict[str, str]:
        planned = Planned(rows).split(settings, seed)
        mixing.admit_general(planned.plan, 0.5, seed)
        return planned.where()

    place = places(found)
    assert len(place) == len(found)  # each row is in one split, or has a reason
    assert set(place.values()) <= {*SIDE, "benchmark", *REASONS}
    for key in ("cluster", "group"):
        sides: dict[str, set[str]] = {}
        watched: dict[str, set[bool]] = {}
        compared = {getattr(row, key) for row in found if row.role == "benchmark"} - {None}
        for row in found:
            name = getattr(row, key)
            if name is None or place[row.id] not in SIDE:
                continue
            sides.setdefault(name, set()).add(SIDE[place[row.id]])
            if SIDE[place[row.id]] == "training":
                watched.setdefault(name, set()).add("validation" in place[row.id])
            if key == "cluster" and SIDE[place[row.id]] == "training":
                assert name not in compared
        assert all(len(met) == 1 for met in sides.values())
        assert all(len(met) == 1 for met in watched.values())
    kept = Counter(
        (row.cluster, SIDE[place[row.id]], row.kind)
        for row in found
        if row.cluster and row.role != "test" and SIDE.get(place[row.id]) in ("training", "test")
    )
    assert all(count == 1 for count in kept.values())
    assert {row.id for row in found if row.role == "regression"} == {
        id for id, split in place.items() if split == "regression"
    }
    if published:
        old = [row for row in found if row.source != NEW]
        assert not any(place[row.id] == "test" for row in old if row.role == "train") or not any(
            row.role == "test" for row in found
        )
    assert places(found[::-1]) == place


def crowd(count: int = 1000) -> list[Row]:
    """Rows of four classes, some in clusters and groups of several."""
    rng = random.Random(3)
    answers = ["a"] * 60 + ["b"] * 25 + ["c"] * 10 + ["d"] * 5
    return [
        Row(
            f"{number:04}",
            cluster=f"c{number // 2}" if number % 10 < 2 else None,
            group=f"g{number // 3}",
            time=f"2026-08-{1 + number % 28:02}T00:00:{number // 28:02}",
            answer=rng.choice(answers) if number % 10 != 1 else "a",
        )
        for number in range(count)
    ]


def arrivals(count: int = 100, **about: Any) -> list[Row]:
    """Chats of a new source, from after the day on which the test of the old ones begins."""
    return [
        Row(
            f"new-{number:03}",
            time=f"2026-09-{1 + number % 28:02}T00:00:{number // 28:02}",
            source=NEW,
            **{"group": f"new-{number}", **about},
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_source_cut_by_itself_moves_no_row_of_another(strategy: str) -> None:
    before = Planned(crowd()).split(STRATEGIES[strategy], 1)
    after = Planned([*crowd(), *arrivals()]).split(with_new(strategy), 1)
    old = slice(0, len(crowd()))
    assert (after.plan.side[old] == before.plan.side).all()
    assert (after.plan.kept[old] == before.plan.kept).all()
    counts = Counter(place for id, place in after.where().items() if id.startswith("new"))
    assert counts["test"] == 30
    assert counts["train"] + counts["validation"] == 70


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_arrival_moves_no_row_of_the_first(strategy: str) -> None:
    second = "arrived/second.jsonl"
    more = [Row(f"2-{row.id}", time=row.time, group=row.id, source=second) for row in arrivals(50)]
    both = STRATEGIES[strategy].model_copy(update={"by_source": {NEW: 0.3, second: 0.4}})
    first = Planned([*crowd(), *arrivals()]).split(with_new(strategy), 1).plan.side
    planned = Planned([*crowd(), *arrivals(), *more]).split(both, 1)
    assert (planned.plan.side[: len(first)] == first).all()
    assert (planned.plan.side[len(first) :] == splits.TEST).sum() == 20


def test_by_time_its_newest_are_the_test() -> None:
    place = where([*crowd(), *arrivals()], with_new("time from a day"))
    tested = [row.time or "" for row in arrivals() if place[row.id] == "test"]
    trained = [row.time or "" for row in arrivals() if place[row.id] != "test"]
    assert max(trained) < min(tested)


@pytest.mark.parametrize("kind", ["preference", "text"])
def test_preferences_and_documents_go_by_the_time_of_their_own_source(kind: str) -> None:
    new = arrivals(kind=kind)
    counts = Counter(where([*crowd(), *new], with_new("time from a day"))[row.id] for row in new)
    assert counts["in_test_window"] == 30
    assert sum(counts.values()) - 30 == sum(
        counts[part] for part in ("preferences", "preferences_validation", "corpus")
    )
    without = where([*crowd(), *new], STRATEGIES["time from a day"])
    assert {without[row.id] for row in new} == {"in_test_window"}
    place = where([*crowd(), *new], with_new("time from a day", 0.0))
    assert all(place[row.id] != "in_test_window" for row in new)


@pytest.mark.parametrize("strategy", ["time from a day", "group", "random"])
def test_what_belongs_to_a_row_of_the_old_test_is_not_trained_on(strategy: str) -> None:
    old = where(crowd(), STRATEGIES[strategy])
    tested = next(row for row in crowd() if old[row.id] == "test" and row.cluster is None)
    named = [
        Row(row.id, "shared", row.kind, row.role, row.time, row.group, row.answer)
        if row.id == tested.id
        else row
        for row in crowd()
    ]
    new = [
        Row("twin", "shared", time="2026-08-01", group="new", source=NEW),
        Row("sibling", time="2026-09-01", group=tested.group, source=NEW),
        *arrivals(10),
    ]
    place = where([*named, *new], with_new(strategy))
    assert place[tested.id] == "test"
    assert (place["twin"], place["sibling"]) == ("near_duplicate", "test")


def test_units_with_a_training_row_of_another_source_are_not_drawn() -> None:
    old = where(crowd(), STRATEGIES["group"])
    trained = [row.group for row in crowd() if old[row.id] == "train"]
    new = [Row(f"new-{n}", group=group, source=NEW) for n, group in enumerate(trained[::3])]
    place = where([*crowd(), *new, *arrivals(10)], with_new("group"))
    assert {place[row.id] for row in new} <= {"train", "validation"}
    assert sum(place[row.id] == "test" for row in arrivals(10)) == 3


def test_a_pattern_speaks_of_the_files_that_none_names() -> None:
    settings = STRATEGIES["random"].model_copy(update={"by_source": {"arrived/*": 0.5, NEW: 0.0}})
    other = [Row(f"o{n}", source="arrived/other.jsonl") for n in range(20)]
    place = where([*crowd(), *arrivals(20), *other], settings)
    assert sum(place[row.id] == "test" for row in other) == 10
    assert not any(place[row.id] == "test" for row in arrivals(20))


@pytest.mark.parametrize("strategy", ["time, the newest", "group", "stratified", "random"])
def test_eighty_ten_ten(strategy: str) -> None:
    found = [row for row in crowd() if row.cluster is None]
    if strategy.startswith("time"):  # rows of a group that reaches into the test would be leaks
        found = [Row(row.id, time=row.time) for row in found]
    counts = Counter(where(found, STRATEGIES[strategy]).values())
    assert counts == {"train": 640, "validation": 80, "test": 80}


@pytest.mark.parametrize("strategy", ["group", "stratified", "random"])
def test_shares_are_of_the_rows_that_are_kept(strategy: str) -> None:
    counts = Counter(where(crowd(), STRATEGIES[strategy]).values())
    assert counts["near_duplicate"] == 100
    assert (counts["test"], counts["validation"], counts["train"]) == (90, 90, 720)


def test_the_seed_decides_and_nothing_else() -> None:
    first = where(crowd(), STRATEGIES["random"], 1)
    assert where(crowd(), STRATEGIES["random"], 1) == first
    assert where(crowd(), STRATEGIES["random"], 2) != first


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_new_row_moves_few_others(strategy: str) -> None:
    before = where(crowd(), STRATEGIES[strategy])
    new = Row("new", group="new", time="2026-08-14", answer="c")
    after = where([new, *crowd()], STRATEGIES[strategy])
    assert sum(before[id] != after[id] for id in before) <= 6  # two groups of three


def test_stratified_keeps_the_proportions_of_the_classes() -> None:
    found = [Row(row.id, answer=row.answer) for row in crowd()]
    place = where(found, STRATEGIES["stratified"])
    of_all = Counter(row.answer for row in found)
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        inside = Counter(row.answer for row in found if place[row.id] == name)
        for answer, count in of_all.items():
            assert abs(inside[answer] - share * count) <= 1
    loose = where(found, STRATEGIES["random"])
    assert Counter(r.answer for r in found if loose[r.id] == "test") != Counter(
        r.answer for r in found if place[r.id] == "test"
    )


def test_stratified_comes_close_with_whole_units() -> None:
    place = where(crowd(), STRATEGIES["stratified"])
    of_all = Counter(row.answer for row in crowd() if place[row.id] in SIDE)
    inside = Counter(row.answer for row in crowd() if place[row.id] == "test")
    for answer, count in of_all.items():
        assert abs(inside[answer] - 0.1 * count) <= 3


def test_free_text_answers_are_classes_of_their_own() -> None:
    found = [Row(str(number), answer=f"answer {number}") for number in range(200)]
    counts = Counter(where(found, STRATEGIES["stratified"]).values())
    assert counts == {"train": 160, "validation": 20, "test": 20}


def test_the_test_begins_on_a_day() -> None:
    planned = Planned(
        [
            *(Row(f"f{number}") for number in range(20)),
            Row("before", time="2026-08-30T23:59:59Z"),
            Row("after", time="2026-08-31T00:00:00Z"),
            Row("before in UTC", time="2026-08-31T01:00:00+02:00"),
            Row("never", time=None),
            Row("pair after", time="2026-09-01", kind="preference"),
            Row("pair never", time=None, kind="preference"),
            Row("regression", time=None, role="regression"),
            Row("general", time=None, role="general"),
            Row("document", time=None, kind="text"),
            Row("document before", time="2026-08-30", kind="text"),
            Row("document after", time="2026-08-31", kind="text"),
        ]
    ).split(split("time", test_from="2026-08-31"), 1)
    found = planned.where()
    assert found["before"] in ("train", "validation")
    assert found["after"] == "test"
    assert found["before in UTC"] in ("train", "validation")
    assert found["never"] == found["pair never"] == "no_time"
    assert found["pair after"] == "in_test_window"
    assert found["regression"] == "regression"
    assert found["general"] == "train"
    assert found["document"] == found["document before"] == "corpus"
    assert found["document after"] == "in_test_window"
    assert planned.detail("never") == "has no time, which format.split.strategy time needs"
    assert planned.detail("pair after") == "is from a time when the test has begun"


def test_the_newest_rows_of_one_moment_stay_together() -> None:
    times = ["2026-08-01"] * 14 + ["2026-08-02"] * 3 + ["2026-08-03"] * 3
    found = [Row(str(number), time=time) for number, time in enumerate(times)]
    place = where(found, split("time", test_share=0.2))
    assert {row.time for row in found if place[row.id] == "test"} == {"2026-08-03"}
    place = where(found, split("time", test_share=0.25))
    assert {row.time for row in found if place[row.id] == "test"} == {"2026-08-02", "2026-08-03"}
    same = [Row(str(number)) for number in range(20)]
    assert "test" not in where(same, split("time")).values()


def test_what_resembles_a_held_out_row_does_not_train() -> None:
    planned = Planned(
        [
            *(Row(f"f{number}") for number in range(20)),
            Row("test", "x", time="2026-09-01"),
            Row("leak", "x"),
            Row("pair", "x", kind="preference"),
            Row("customer in test", group="g", time="2026-09-01"),
            Row("customer", group="g"),
            Row("regression", "y", role="regression", time=None),
            Row("learned", "y"),
            Row("tested twice", "y", time="2026-09-01"),
            Row("benchmark", "z", kind="text", role="benchmark", group="h"),
            Row("known", "z"),
            Row("group of a benchmark", group="h"),
        ]
    ).split(split("time", test_from="2026-08-31"), 1)
    found = planned.where()
    assert found["test"] == found["customer in test"] == "test"
    assert [name for name, place in found.items() if place == "leak"] == [
        "leak", "pair", "customer", "learned", "known",
    ]  # fmt: skip
    assert found["tested twice"] == "in_regression"
    assert found["group of a benchmark"] in ("train", "validation")
    assert planned.detail("leak") == "nearly the same as test, which is held out"
    assert planned.detail("customer") == (
        "of the same group as customer in test, which is held out"
    )
    assert planned.detail("tested twice") == (
        "nearly the same as regression, of the regression suite"
    )


def test_documents_of_a_held_out_group_or_text_do_not_train() -> None:
    chats = [Row(f"f{number}", f"c{number}", group=f"g{number}") for number in range(20)]
    pages = [Row(f"d{number}", kind="text", group=f"g{number}") for number in range(20)]
    copies = [Row(f"e{number}", f"c{number}", kind="text") for number in range(20)]
    alone = [Row("alone", kind="text"), Row("of none", kind="text", group="h")]
    suite = [Row("r", role="regression", group="s"), Row("p", kind="text", group="s")]
    for strategy in ("random", "group", "stratified"):
        planned = Planned([*chats, *pages, *copies, *alone, *suite]).split(split(strategy), 1)
        found = planned.where()
        assert Counter(found[row.id] for row in chats) == {"train": 16, "validation": 2, "test": 2}
        for number in range(20):
            place = "corpus" if found[f"f{number}"] == "train" else "leak"
            assert (found[f"d{number}"], found[f"e{number}"]) == (place, place)
        assert (found["alone"], found["of none"], found["p"]) == ("corpus", "corpus", "leak")
        held = [row.id for row in chats if found[row.id] == "validation"]
        for id in held:
            own = f"{id}, which is held out"
            assert planned.detail(f"d{id[1:]}") == f"of the same group as {own}"
            assert planned.detail(f"e{id[1:]}") == f"nearly the same as {own}"


def test_of_documents_that_are_nearly_the_same_the_first_is_kept() -> None:
    planned = Planned(
        [
            *(Row(f"f{number}") for number in range(20)),
            Row("chat", "x", role="general"),
            Row("b", "x", kind="text", time=None),
            Row("a", "x", kind="text", time=None),
            Row("c", "x", kind="text", time="2026-08-02"),
        ]
    ).split(split("time", test_from="2026-08-31"), 1)
    found = planned.where()
    assert (found["chat"], found["c"]) == ("train", "corpus")
    assert found["a"] == found["b"] == "near_duplicate"
    assert planned.detail("a") == "nearly the same as c"


def test_a_published_test_stays_whole() -> None:
    own = [Row(f"f{number}") for number in range(20)]
    published = [Row(f"t{number}", "x", role="test") for number in range(3)]
    counts = Counter(where([*own, *published], split("random", test_share=None)).values())
    assert counts == {"train": 18, "validation": 2, "test": 3}


def test_a_published_test_is_the_test() -> None:
    published = [Row(f"t{number}", f"c{number}", role="test", time=None) for number in range(3)]
    own = [Row(f"f{number}") for number in range(20)]
    for strategy in ("time", "random", "stratified"):
        planned = Planned([*own, Row("copy", "c1"), *published])
        assert splits.hold_out(planned.plan, split(strategy, test_share=None), 1) == (
            "the rows of role test"
        )
        counts = Counter(planned.split(split(strategy, test_share=None), 1).where().values())
        assert counts == {"train": 18, "validation": 2, "test": 3, "leak": 1}


def test_one_row_of_a_cluster_is_kept_the_first_by_time_then_id() -> None:
    found = where(
        [
            *(Row(f"f{number}") for number in range(20)),
            Row("general", "x", time="2026-01-01", role="general"),
            Row("c", "x", time="2026-07-02"),
            Row("b", "x", time="2026-07-01T12:00:00"),
            Row("a", "x", time="2026-07-01T12:00:00Z"),
            Row("pair", "x", kind="preference"),
            Row("pair again", "x", kind="preference", time="2026-08-02"),
            Row("t1", "y", time="2026-09-01"),
            Row("t2", "y", time="2026-09-02"),
        ],
        split("time", test_from="2026-08-31"),
    )
    assert found["a"] in ("train", "validation")
    assert found["b"] == found["c"] == found["general"] == "near_duplicate"
    pair = {"train": "preferences", "validation": "preferences_validation"}[found["a"]]
    assert (found["pair"], found["pair again"]) == (pair, "near_duplicate")
    assert (found["t1"], found["t2"]) == ("test", "near_duplicate")


def test_a_group_strategy_needs_groups() -> None:
    planned = Planned(
        [
            *(Row(f"f{number}", group=f"g{number}") for number in range(20)),
            Row("alone"),
            Row("pair alone", kind="preference"),
            Row("document", kind="text"),
            Row("general", role="general"),
        ]
    ).split(split("group"), 1)
    found = planned.where()
    assert found["alone"] == found["pair alone"] == "no_group"
    assert (found["document"], found["general"]) == ("corpus", "train")
    assert planned.detail("alone") == "has no group, which format.split.strategy group needs"


def test_of_groups_that_are_all_too_large_the_smallest_is_taken() -> None:
    sizes = {"large": 40, "small": 20, "middle": 30, "other": 40}
    found = [Row(f"{g}{n}", group=g) for g, size in sizes.items() for n in range(size)]
    place = where(found, split("group"))
    assert {row.group for row in found if place[row.id] == "test"} == {"small"}
    assert {row.group for row in found if place[row.id] == "validation"} == {"middle"}
    one = [Row(str(number), group="g") for number in range(20)]
    assert set(where(one, split("group")).values()) == {"train"}


@pytest.mark.parametrize(("count", "share", "validation"), [(1, 0.1, 0), (2, 0.9, 1), (5, 0.1, 1)])
def test_small_data_keeps_rows_to_train_on(count: int, share: float, validation: int) -> None:
    found = [Row(str(number)) for number in range(count)]
    settings = split("time", test_from="2026-08-31", validation_share=share)
    places = list(where(found, settings).values())
    assert places.count("validation") == validation
    assert places.count("train") == count - validation
