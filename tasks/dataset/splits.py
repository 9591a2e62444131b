"""Who trains and who is tested: a split that no near-duplicate crosses."""

from __future__ import annotations

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.dataset import duplicates, records
from tasks.dataset.contamination import nearest
from tasks.dataset.faults import RowError
from tasks.params import Format, Split

Side = Literal["training", "test", "regression"]
SPLITS = (
    "train",
    "validation",
    "test",
    "hard_test",
    "regression",
    "preferences",
    "preferences_validation",
    "corpus",
)


@dataclass(frozen=True, slots=True)
class Item:
    """What of a chat or preference record decides where it goes."""

    kind: Literal["chat", "preference"]
    source: str
    id: str
    role: str
    time: datetime.datetime | None
    group: str | None
    text: str

    @property
    def name(self) -> str:
        """The record, for messages and hashes."""
        return f"{self.source} {self.id}"

    @property
    def age(self) -> tuple[bool, datetime.datetime, str, str]:
        """The order in which rows of a cluster are kept: first by time, then by id."""
        return self.time is None, self.time or _EPOCH, self.source, self.id


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def item(kind: Literal["chat", "preference"], record: Mapping[str, Any]) -> Item:
    """The item of a record."""
    time = None if record["time"] is None else instant(record["time"])
    about = record["source"], record["id"], record["role"]
    return Item(kind, *about, time, record["group"], records.user_text(record))


def instant(time: str) -> datetime.datetime:
    """A point in time from ISO 8601; without an offset it is UTC."""
    found = datetime.datetime.fromisoformat(time)
    return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Plan:
    """Where each item goes: a name of SPLITS, or a fault. Lists are parallel to the items."""

    where: list[str | RowError]
    hard: set[int]
    clusters: int
    """Clusters of at least two rows."""
    leaks: int
    training_rows: int
    """Rows on the side of training, leaks included."""
    hard_similarity: float | None
    """Highest similarity to training of a hard test row."""


def plan(items: Sequence[Item], settings: Format, seed: int) -> Plan:
    """Decide for every chat and preference record.

    Clusters of near-duplicates are found over all of them. A row of the training side whose cluster
    has a held-out row is a leak; of what remains, each side keeps the first row of a cluster (chats
    and preferences for themselves, since a prompt may well serve both).  Validation takes whole
    clusters, and whole groups.
    """
    partition = duplicates.clusters([i.text for i in items], settings.near_duplicates, seed)
    cluster = partition.names()
    units = _with_groups(items, partition)
    sides = _sides(items, units, settings.split, seed)

    where: list[str | RowError] = [side if isinstance(side, RowError) else "" for side in sides]
    leaks = _leaks(items, cluster, sides)
    training_rows = sum(side == "training" for side in sides)
    where = [leaks.get(index, place) for index, place in enumerate(where)]
    copies = _copies(items, cluster, sides, where)
    where = [copies.get(index, place) for index, place in enumerate(where)]

    left = [index for index, place in enumerate(where) if not isinstance(place, RowError)]
    training = [index for index in left if sides[index] == "training"]
    validation = _choose(
        items, units, training, settings.split.validation_share, seed, "validation"
    )
    for index in left:
        where[index] = _split(items[index], sides[index], index in validation)
    hard, similarity = _hardest(items, where, settings.hard_test_share)
    return Plan(where, hard, _crowded(cluster), len(leaks), training_rows, similarity)


def _split(item: Item, side: Side | RowError, validation: bool) -> str:
    if side != "training":
        return str(side)
    if item.kind == "chat":
        return "validation" if validation else "train"
    return "preferences_validation" if validation else "preferences"


def _crowded(cluster: Sequence[int]) -> int:
    sizes: defaultdict[int, int] = defaultdict(int)
    for name in cluster:
        sizes[name] += 1
    return sum(size > 1 for size in sizes.values())


def _with_groups(items: Sequence[Item], partition: duplicates.Partition) -> list[int]:
    """What a random split must not cut: clusters, joined where rows share a group."""
    first: dict[str, int] = {}
    for index, row in enumerate(items):
        if row.group is not None:
            partition.join(first.setdefault(row.group, index), index)
    return partition.names()


def _sides(
    items: Sequence[Item], units: Sequence[int], split: Split, seed: int
) -> list[Side | RowError]:
    if split.strategy == "time":
        assert split.test_from is not None  # params.yaml is checked for it
        return [_side_by_time(row, split.test_from) for row in items]
    assert split.test_share is not None
    chats = [i for i, row in enumerate(items) if row.kind == "chat" and row.role == "train"]
    test = {units[index] for index in _choose(items, units, chats, split.test_share, seed, "test")}

    def side(index: int, row: Item) -> Side | RowError:
        if row.role == "regression":
            return "regression"
        if units[index] not in test:
            return "training"
        if row.kind == "preference":
            return RowError("leak", "belongs to rows that are held out for the test")
        return "test"

    return [side(index, row) for index, row in enumerate(items)]


def _side_by_time(row: Item, test_from: str) -> Side | RowError:
    if row.role == "regression":
        return "regression"
    if row.time is None:
        return RowError("no_time", "has no time, which format.split.strategy needs")
    if row.time.date().isoformat() < test_from:
        return "training"
    if row.kind == "preference":
        return RowError("in_test_window", f"is from {test_from} or later, when the test begins")
    return "test"


def _leaks(
    items: Sequence[Item], cluster: Sequence[int], sides: Sequence[Side | RowError]
) -> dict[int, RowError]:
    held_out: dict[int, str] = {}
    for index, side in enumerate(sides):
        if side in ("test", "regression"):
            held_out.setdefault(cluster[index], items[index].name)
    return {
        index: RowError("leak", f"nearly the same as {held_out[cluster[index]]}, which is held out")
        for index, side in enumerate(sides)
        if side == "training" and cluster[index] in held_out
    }


def _copies(
    items: Sequence[Item],
    cluster: Sequence[int],
    sides: Sequence[Side | RowError],
    where: Sequence[str | RowError],
) -> dict[int, RowError]:
    """All but the first row of a cluster, for each side and kind; regression rows all stay."""
    together: defaultdict[tuple[int, str, str], list[int]] = defaultdict(list)
    for index, place in enumerate(where):
        side = sides[index]
        if not isinstance(place, RowError) and side in ("training", "test"):
            together[cluster[index], str(side), items[index].kind].append(index)
    found: dict[int, RowError] = {}
    for members in together.values():
        first, *others = sorted(members, key=lambda index: items[index].age)
        for index in others:
            found[index] = RowError("near_duplicate", f"nearly the same as {items[first].name}")
    return found


def _choose(
    items: Sequence[Item],
    units: Sequence[int],
    candidates: Iterable[int],
    share: float,
    seed: int,
    purpose: str,
) -> set[int]:
    """About a share of the candidates of each kind, in whole units.

    Units are taken in the order of a hash of their first row's name and the seed, so that a new row
    moves few others; a unit that is larger than what is left to take is passed over.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in candidates:
        members[units[index]].append(index)
    kinds = [items[index].kind for rows in members.values() for index in rows]
    left = {kind: _quota(kinds.count(kind), share) for kind in ("chat", "preference")}

    def rank(rows: list[int]) -> bytes:
        name = min(items[index].name for index in rows)
        return hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=16).digest()

    chosen: set[int] = set()
    for rows in sorted(members.values(), key=rank):
        sizes = {kind: sum(items[index].kind == kind for index in rows) for kind in left}
        if all(sizes[kind] <= left[kind] for kind in left):
            chosen.update(rows)
            left = {kind: left[kind] - sizes[kind] for kind in left}
    return chosen


def _quota(rows: int, share: float) -> int:
    """Rows to take: the share, but one at least, and never all."""
    return min(max(1, round(share * rows)), rows - 1) if rows > 1 else 0


def _hardest(
    items: Sequence[Item], where: Sequence[str | RowError], share: float
) -> tuple[set[int], float | None]:
    """The share of the test rows that are least like any training row, and how like they are."""
    tests = [index for index, place in enumerate(where) if place == "test"]
    train = [items[i].text for i, place in enumerate(where) if place in ("train", "preferences")]
    if not tests or not train:
        return set(), None
    scores = nearest([items[index].text for index in tests], train)
    ranked = sorted(zip(scores, (items[i].name for i in tests), tests, strict=True))
    hard = ranked[: max(1, round(share * len(tests)))]
    return {index for _, _, index in hard}, hard[-1][0]
