"""Who trains and who is tested: splits that cut no cluster of near-duplicates and no group."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.dataset import columns, ngrams
from tasks.dataset.columns import CHAT, NO_GROUP, NO_TIME, PREFERENCE, TEXT, Columns
from tasks.dataset.faults import RowError
from tasks.dataset.ngrams import Flags, Hashes, Ints
from tasks.lineage.stage import StageError
from tasks.params import Split

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

NOWHERE, TRAINING, TEST, REGRESSION, BENCHMARK = range(-1, 4)
"""The sides that a row can be on."""


@dataclass(frozen=True)
class Cause:
    """Why rows are left out; `{other}` in the detail stands for the row that is to blame."""

    reason: str
    detail: str


NO_TIME_GIVEN = Cause("no_time", "has no time, which format.split.strategy time needs")
NO_GROUP_GIVEN = Cause("no_group", "has no group, which format.split.strategy group needs")
IN_TEST_WINDOW = Cause("in_test_window", "is from a time when the test has begun")
LEAK = Cause("leak", "nearly the same as {other}, which is held out")
LEAK_BY_GROUP = Cause("leak", "of the same group as {other}, which is held out")
COPY = Cause("near_duplicate", "nearly the same as {other}")
IN_REGRESSION = Cause("in_regression", "nearly the same as {other}, of the regression suite")
IN_REGRESSION_BY_GROUP = Cause(
    "in_regression", "of the same group as {other}, of the regression suite"
)
CONTAMINATED = Cause("contaminated", "holds {other}, which is held out")
NOT_IN_MIX = Cause("not_in_mix", "format.mix takes other rows of its source")
CAUSES = (
    NO_TIME_GIVEN,
    NO_GROUP_GIVEN,
    IN_TEST_WINDOW,
    LEAK,
    LEAK_BY_GROUP,
    COPY,
    IN_REGRESSION,
    IN_REGRESSION_BY_GROUP,
    CONTAMINATED,
    NOT_IN_MIX,
)
ON_PURPOSE = frozenset(
    cause.reason for cause in CAUSES if cause not in (NO_TIME_GIVEN, NO_GROUP_GIVEN)
)
"""Reasons of rows that are left out for the sake of others; any other reason is a row's own fault."""

Names = Callable[[Iterable[int]], Mapping[int, tuple[str, str]]]
"""Source and id of rows."""


class Plan:
    """On which side each row is, and why some are left out. Arrays have an element for each row."""

    def __init__(self, rows: Columns, cluster: Ints) -> None:
        """`cluster`: the least number of a row of its cluster; a row of no cluster names itself."""
        self.rows = rows
        self.cluster = cluster
        self.group = np.where(rows.role == columns.BENCHMARK, NO_GROUP, rows.group)
        self.unit = _units(cluster, self.group)
        self.side = np.full(len(rows), NOWHERE, np.int8)
        self.validation = np.zeros(len(rows), np.bool_)
        self.copies = np.ones(len(rows), np.int64)
        """How often a row of the training side is trained on in an epoch."""
        self._cause = np.full(len(rows), -1, np.int8)
        self._other = np.full(len(rows), -1, np.int64)

    @property
    def kept(self) -> Flags:
        """Rows that are on a side and not left out."""
        kept: Flags = (self.side != NOWHERE) & (self._cause < 0)
        return kept

    def on(self, side: int, *kinds: int) -> Flags:
        """The kept rows of a side that have one of the kinds."""
        found: Flags = self.kept & (self.side == side) & np.isin(self.rows.kind, kinds)
        return found

    def leave_out(self, rows: Ints, others: Ints | None, cause: Cause) -> None:
        """Reject rows, for the sake of others or of none; what was left out before keeps its cause."""
        new = self._cause[rows] < 0
        self._cause[rows[new]] = CAUSES.index(cause)
        if others is not None:
            self._other[rows[new]] = others[new]

    def fault(self, row: int, name: Callable[[int], str]) -> RowError | None:
        """Why a row is left out; None for a row that is kept."""
        if unfit := self.rows.faults.get(row):
            return RowError(unfit.reason, unfit.detail)
        if self._cause[row] < 0:
            return None
        cause = CAUSES[self._cause[row]]
        other = int(self._other[row])
        return RowError(cause.reason, cause.detail.format(other=name(other) if other >= 0 else ""))

    def clusters(self) -> int:
        """Clusters of at least two rows."""
        _, sizes = np.unique(self.cluster, return_counts=True)
        return int((sizes > 1).sum())

    def splits(self) -> dict[str, Flags]:
        """The rows of each split but the hard test, which is a part of the test."""
        chats, pairs = self.on(TRAINING, CHAT), self.on(TRAINING, PREFERENCE)
        return {
            "train": chats & ~self.validation,
            "validation": chats & self.validation,
            "test": self.on(TEST, CHAT),
            "regression": self.on(REGRESSION, CHAT),
            "preferences": pairs & ~self.validation,
            "preferences_validation": pairs & self.validation,
            "corpus": self.on(TRAINING, TEXT),
        }


def _units(cluster: Ints, group: Hashes) -> Ints:
    """What is never cut: clusters, joined where rows share a group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    grouped = np.flatnonzero(group != NO_GROUP)
    if not len(grouped):
        return cluster
    clusters, number = np.unique(cluster, return_inverse=True)
    groups, member = np.unique(group[grouped], return_inverse=True)
    size = len(clusters) + len(groups)
    edges = (number[grouped], len(clusters) + member)
    graph = coo_matrix((np.ones(len(grouped), np.int8), edges), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    units: Ints = component[number].astype(np.int64)
    return units


def hold_out(plan: Plan, split: Split, seed: int) -> str:
    """Put every row that can be rendered on a side.

    The test is what has the role test; else, with strategy time, what is new; else whole units that
    make up `test_share` of the chats.  The sources of `by_source` are then cut one after another,
    which moves no row of those before.

    Returns:
        what the test is, in words.

    Raises:
        StageError: when no row has the role test, which the settings rely on.
    """
    rows = plan.rows
    usable = np.ones(len(rows), np.bool_)
    usable[list(rows.faults)] = False
    sides = {columns.TEST: TEST, columns.REGRESSION: REGRESSION, columns.BENCHMARK: BENCHMARK}
    plan.side[usable] = TRAINING
    for role, side in sides.items():
        plan.side[usable & (rows.role == role)] = side
    own = usable & (rows.role == columns.TRAIN)
    if split.strategy == "group":
        without = own & (rows.kind != TEXT) & (rows.group == NO_GROUP)
        plan.leave_out(np.flatnonzero(without), None, NO_GROUP_GIVEN)
    parts = _by_source(plan, own, split)
    together = usable & ~np.logical_or.reduce([np.zeros_like(own), *parts.values()])
    said = [_hold_out_together(plan, together, split, seed)]
    for source, part in parts.items():
        share = split.by_source[source]
        _hold_out_part(plan, part, together, split, share, seed)
        together |= part
        said.append(f"{share:.0%} of {source}")
    return "; ".join(said)


def _by_source(plan: Plan, own: Flags, split: Split) -> dict[str, Flags]:
    """The rows that each entry of `by_source` speaks of: those of its file, or of the files that its
    pattern fits and no entry names."""
    entries = [_entry(source, split.by_source) for source in plan.rows.sources]
    return {
        entry: own & np.isin(plan.rows.source, [n for n, of in enumerate(entries) if of == entry])
        for entry in split.by_source
    }


def _entry(source: str, by_source: Mapping[str, float]) -> str | None:
    if source in by_source:
        return source
    return next((entry for entry in by_source if fnmatch.fnmatchcase(source, entry)), None)


def _hold_out_together(plan: Plan, usable: Flags, split: Split, seed: int) -> str:
    """The test of all that is not cut by its source. Returns what it is."""
    rows = plan.rows
    own = usable & (rows.role == columns.TRAIN) & (rows.kind != TEXT)
    if np.any(rows.role == columns.TEST):
        given = [key for key in ("test_from", "test_share") if getattr(split, key) is not None]
        unused = [f"format.split.{key} is not used" for key in given]
        return "; ".join(["the rows of role test", *unused])
    if split.strategy == "time" and split.test_from is not None:
        _hold_out_from(plan, usable, own, columns.microseconds(split.test_from))
        what = f"the chats from {split.test_from} on"
        return what if split.test_share is None else f"{what}; format.split.test_share is not used"
    if split.test_share is None:
        raise StageError(
            "no row of role test has come here, and format.split says nothing else of the test; "
            "look into data/rejected for why, or give format.split.test_share"
        )
    if split.strategy == "time":
        times = rows.time[own & (rows.kind == CHAT) & (rows.time != NO_TIME)]
        _hold_out_from(plan, usable, own, _begin(times, split.test_share))
        return f"the newest {split.test_share:.0%} of the chats"
    chats = own & (rows.kind == CHAT) & plan.kept
    _hold_out_units(plan, chats, split, split.test_share, seed)
    return f"{split.test_share:.0%} of the chats, by {split.strategy}"


def _hold_out_part(
    plan: Plan, part: Flags, before: Flags, split: Split, share: float, seed: int
) -> None:
    """Cut the rows of one entry of `by_source` by themselves.

    With strategy time its newest are the test, and of its preferences and documents the newest are
    left out, as those of the test's time are elsewhere.  Else whole units are drawn, of which none
    has a row of another source that is trained on.  What shares a unit with a row of the test as it
    is joins it there; what nearly equals one is left out.

    Args:
        before: the rows that have their side already, and keep it.
    """
    rows = plan.rows
    chats = part & (rows.kind == CHAT)
    test = (plan.side == TEST) & (rows.role != columns.TEST)  # a published one stays as it is
    plan.side[chats & np.isin(plan.unit, plan.unit[test])] = TEST
    joined = np.flatnonzero(chats & (plan.side == TEST))
    plan.leave_out(*_first_with(_near(plan), joined, np.flatnonzero(test)), COPY)
    if split.strategy == "time":
        times = rows.time[part & (rows.time != NO_TIME)]
        end = int(np.iinfo(np.int64).max)
        begin = _begin(times, share) if share else end
        _hold_out_from(plan, part, part & (rows.kind != TEXT), begin)
    elif share:
        trained = before & (plan.side == TRAINING) & plan.kept
        free = chats & plan.kept & ~np.isin(plan.unit, plan.unit[trained])
        _hold_out_units(plan, free, split, share, seed)


def _hold_out_from(plan: Plan, usable: Flags, own: Flags, begin: int) -> None:
    """The chats of `own` from a moment on are the test; preferences and documents are left out then.

    Args:
        usable: what documents are among.
    """
    rows = plan.rows
    plan.leave_out(np.flatnonzero(own & (rows.time == NO_TIME)), None, NO_TIME_GIVEN)
    new = own & (rows.time >= begin)
    plan.side[new & (rows.kind == CHAT)] = TEST
    documents = usable & (plan.side == TRAINING) & (rows.kind == TEXT) & (rows.time >= begin)
    unseen = documents | (new & (rows.kind == PREFERENCE))
    plan.leave_out(np.flatnonzero(unseen), None, IN_TEST_WINDOW)


def _begin(times: Ints, share: float) -> int:
    """From when on about a share of the rows is; rows of the same time stay together."""
    if not len(times):
        return int(np.iinfo(np.int64).max)
    moments, counts = np.unique(times, return_counts=True)
    newer = np.cumsum(counts[::-1])[::-1]  # rows from each moment on
    wanted = quota(len(times), share)
    if len(moments) == 1:
        return int(moments[0]) + 1
    return int(moments[1:][np.argmin(np.abs(newer[1:] - wanted))])


def _hold_out_units(plan: Plan, own: Flags, split: Split, share: float, seed: int) -> None:
    held_out = np.isin(plan.side, (TEST, REGRESSION, BENCHMARK))
    free = np.flatnonzero(own & ~np.isin(plan.unit, plan.unit[held_out]))
    order = np.lexsort((plan.rows.key[free], plan.cluster[free]))
    _, first = np.unique(plan.cluster[free][order], return_index=True)
    one_each = free[order][first]  # of a cluster, since one row of it will be kept
    label = plan.rows.label if split.strategy == "stratified" else None
    wanted = quota(len(one_each), share)
    chosen = choose(plan, one_each, {CHAT: wanted}, seed, "test", label)
    plan.side[own & np.isin(plan.unit, chosen)] = TEST


def leave_out_leaks(plan: Plan) -> None:
    """Reject rows of the training side that share a cluster or a group with a held-out row, and
    rows of the test that share one with the regression suite."""
    near, group = _near(plan), plan.group
    training, test = (np.flatnonzero(plan.kept & (plan.side == side)) for side in (TRAINING, TEST))
    held_out = np.flatnonzero(plan.kept & np.isin(plan.side, (TEST, REGRESSION, BENCHMARK)))
    regression = np.flatnonzero(plan.kept & (plan.side == REGRESSION))
    for names, rows, others, cause in (
        (near, training, held_out, LEAK),
        (group, training, held_out, LEAK_BY_GROUP),
        (near, test, regression, IN_REGRESSION),
        (group, test, regression, IN_REGRESSION_BY_GROUP),
    ):
        found, first = _first_with(names, rows, others)
        plan.leave_out(found, first, cause)


def _near(plan: Plan) -> Hashes:
    """The clusters as names, none of which is NO_GROUP."""
    names: Hashes = plan.cluster.astype(np.uint64) + np.uint64(1)
    return names


def _first_with(names: Hashes, rows: Ints, others: Ints) -> tuple[Ints, Ints]:
    """Of the rows those that share a name with one of the others, and the first of these."""
    others = others[names[others] != NO_GROUP]
    known, first = np.unique(names[others], return_index=True)
    if not len(known):
        return rows[:0], rows[:0]
    place = np.minimum(np.searchsorted(known, names[rows]), len(known) - 1)
    shared = known[place] == names[rows]
    return rows[shared], others[first[place[shared]]]


def leave_out_copies(plan: Plan, names: Names) -> None:
    """Of a cluster keep one row, for each side and kind: the first by time, then by source and id.

    Chats, preferences and documents are kept for themselves, since a prompt may well serve both of
    the former; a general row gives way to one of the task. The regression suite and a published
    test stay whole, so that scores on them can be compared with those of others.
    """
    rows = plan.rows
    own_test = plan.on(TEST, CHAT) & (rows.role != columns.TEST)
    kept = np.flatnonzero(plan.on(TRAINING, CHAT, PREFERENCE, TEXT) | own_test)
    together = np.stack([plan.cluster, rows.kind, plan.side])[:, kept]
    age = np.stack([rows.role == columns.GENERAL, rows.time == NO_TIME, rows.time])[:, kept]
    order = np.lexsort([*age[::-1], *together[::-1]])
    starts = np.flatnonzero(_changes(together[:, order]))
    sizes = np.diff(starts, append=len(kept))
    ages = np.cumsum(_changes(np.concatenate([together, age])[:, order]))
    left_out: list[int] = []
    firsts: list[int] = []
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        members = kept[order[start : start + size]].tolist()
        equal = int(np.searchsorted(ages[start : start + size], ages[start], "right"))
        first = _first(members[:equal], names)
        left_out += [row for row in members if row != first]
        firsts += [first] * (size - 1)
    plan.leave_out(np.array(left_out, np.int64), np.array(firsts, np.int64), COPY)


def _first(rows: list[int], names: Names) -> int:
    """The row whose source and id come first."""
    if len(rows) == 1:
        return rows[0]
    named = names(rows)
    return min(rows, key=named.__getitem__)


def _changes(table: NDArray[np.int64]) -> Flags:
    """Whether a column differs from the one before it."""
    found = np.ones(table.shape[1], np.bool_)
    found[1:] = np.any(table[:, 1:] != table[:, :-1], axis=0)
    return found


def choose_validation(plan: Plan, split: Split, seed: int) -> None:
    """Whole units of the training side: `validation_share` of the task's chats that are kept, the
    test included, and of the preferences. Documents that share a cluster or a group with them are
    rejected, for there is no validation of documents."""
    own = plan.rows.role == columns.TRAIN
    chats, pairs = (plan.on(TRAINING, kind) & own for kind in (CHAT, PREFERENCE))
    tested = int((plan.on(TEST, CHAT) & own).sum())
    count = int(chats.sum())
    wanted = {
        CHAT: min(quota(count + tested, split.validation_share), max(0, count - 1)),
        PREFERENCE: quota(int(pairs.sum()), split.validation_share),
    }
    label = plan.rows.label if split.strategy == "stratified" else None
    chosen = choose(plan, np.flatnonzero(chats | pairs), wanted, seed, "validation", label)
    plan.validation = plan.on(TRAINING, CHAT, PREFERENCE) & np.isin(plan.unit, chosen)
    documents = np.flatnonzero(plan.on(TRAINING, TEXT))
    general = plan.rows.role == columns.GENERAL  # in validation such rows are never used
    held_out = np.flatnonzero(plan.validation & ~general)
    for names, cause in ((_near(plan), LEAK), (plan.group, LEAK_BY_GROUP)):
        plan.leave_out(*_first_with(names, documents, held_out), cause)


def quota(rows: int, share: float) -> int:
    """Rows to take: the share, but one at least, and never all."""
    return min(max(1, round(share * rows)), rows - 1) if rows > 1 else 0


def choose(
    plan: Plan, rows: Ints, wanted: Mapping[int, int], seed: int, purpose: str, label: Hashes | None
) -> Ints:
    """Units that together have about as many of the rows as are wanted of each kind.

    Units are taken in the order of a hash of a row's name and the seed, so that a new row moves few
    others; a unit that is larger than what is left to take is passed over. With labels, each class
    of chats is filled for itself first. When no unit fits, the smallest is taken, unless it is the
    only one.
    """
    if not len(rows):
        return rows
    stock = _Stock(plan.unit[rows], plan.rows.kind[rows].astype(np.int64))
    order = np.argsort(_rank(stock.least(plan.rows.key[rows]), seed, purpose), kind="stable")
    taken = np.zeros(len(stock.units), np.bool_)
    if label is not None:
        classes = 1 + PREFERENCE + np.unique(label[rows], return_inverse=True)[1]
        by_class = _Stock(plan.unit[rows], np.where(stock.resource == CHAT, classes, PREFERENCE))
        quotas = _quotas(label[rows][stock.resource == CHAT], wanted[CHAT], seed)
        limits = dict(zip(np.unique(classes[stock.resource == CHAT]).tolist(), quotas, strict=True))
        by_class.take(order, {PREFERENCE: wanted.get(PREFERENCE, 0), **limits}, taken)
    stock.take(order, wanted, taken)
    if not taken.any() and len(taken) > 1 and any(wanted.values()):
        taken[order[np.argmin(stock.sizes[order])]] = True
    return stock.units[taken]


def _rank(keys: Hashes, seed: int, purpose: str) -> Hashes:
    salt = hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=8).digest()
    return ngrams.mix(keys ^ np.uint64(int.from_bytes(salt, "little")))


def rank(rows: Columns, seed: int, purpose: str) -> Hashes:
    """A number for each row that its name, the seed and the purpose decide."""
    return _rank(rows.key, seed, purpose)


class _Stock:
    """How many rows of each resource, a kind or a class, each unit has."""

    def __init__(self, unit: Ints, resource: Ints) -> None:
        self.resource = resource
        self.units, self._unit = np.unique(unit, return_inverse=True)
        self.sizes = np.bincount(self._unit, minlength=len(self.units))
        kinds = int(resource.max()) + 1
        cells, self._counts = np.unique(self._unit * kinds + resource, return_counts=True)
        self._resources = cells % kinds
        self._starts = np.searchsorted(cells, np.arange(len(self.units) + 1) * kinds)

    def least(self, keys: Hashes) -> Hashes:
        """The least key of each unit's rows."""
        found = np.full(len(self.units), np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(found, self._unit, keys)
        return found

    def take(self, order: Ints, wanted: Mapping[int, int], taken: Flags) -> None:
        """Take further units in an order, as long as no more than is wanted of any resource."""
        left = dict(wanted)
        resources, counts, starts = (
            array.tolist() for array in (self._resources, self._counts, self._starts)
        )
        for unit in np.flatnonzero(taken).tolist():
            for cell in range(starts[unit], starts[unit + 1]):
                left[resources[cell]] = left.get(resources[cell], 0) - counts[cell]
        open_places = sum(max(0, places) for places in left.values())
        for unit in order[~taken[order]].tolist():
            if not open_places:
                return
            cells = range(starts[unit], starts[unit + 1])
            if all(counts[cell] <= left.get(resources[cell], 0) for cell in cells):
                taken[unit] = True
                for cell in cells:
                    left[resources[cell]] -= counts[cell]
                    open_places -= counts[cell]


def _quotas(labels: Hashes, wanted: int, seed: int) -> list[int]:
    """How many rows of each class to take, in the order of the classes: by largest remainder."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * wanted / max(1, len(labels))
    whole = np.floor(shares).astype(np.int64)
    order = np.lexsort((_rank(classes, seed, "classes"), whole - shares))
    whole[order[: wanted - int(whole.sum())]] += 1
    found: list[int] = whole.tolist()
    return found
