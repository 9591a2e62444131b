"""Near-duplicates: texts whose word shingles agree.

MinHash (Broder 1997) with locality-sensitive hashing (Leskovec, Rajaraman, Ullman: Mining of
Massive Datasets, 3.4) proposes pairs; each is then compared exactly, so a cluster holds no guess.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.params import NearDuplicates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MISSED = 1e-3
"""Highest probability that a pair just at the threshold is not proposed."""

BLOCK = 4_000
"""Texts whose MinHashes are in memory at once, 4 bytes a permutation."""

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters or digits, case folded."""
    return _WORD.findall(text.casefold())


def shingles(text: str, size: int) -> frozenset[str]:
    """Every run of `size` words; a shorter text is one shingle, one without words is itself."""
    found = words(text) or [text]
    last = max(1, len(found) - size + 1)
    return frozenset(" ".join(found[start : start + size]) for start in range(last))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared elements over all elements, 0 to 1."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


class Partition:
    """Disjoint sets of the numbers 0 to n-1 (Tarjan's union-find); the least member names a set."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, member: int) -> int:
        """The name of a member's set."""
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = self._parent[member]
        return member

    def join(self, left: int, right: int) -> None:
        """Make two members' sets one."""
        left, right = sorted((self.find(left), self.find(right)))
        self._parent[right] = left

    def names(self) -> list[int]:
        """The name of every member's set."""
        return [self.find(member) for member in range(len(self._parent))]


def clusters(texts: Sequence[str], settings: NearDuplicates, seed: int) -> Partition:
    """Texts joined wherever two agree to the threshold, and so through chains of such pairs."""
    partition = Partition(len(texts))
    distinct, keys = _sketch(texts, settings, seed, partition)
    unlike: set[tuple[int, int]] = set()

    def alike(left: int, right: int) -> bool:
        pair = (left, right) if left < right else (right, left)
        if pair in unlike:
            return False
        sets = (shingles(texts[index], settings.shingle_words) for index in pair)
        if jaccard(*sets) >= settings.threshold:
            return True
        unlike.add(pair)
        return False

    for bucket in _buckets(keys):
        groups: dict[int, list[int]] = {}  # what of the bucket is joined so far, by name of the set
        for number in bucket:
            member = distinct[number]
            own = groups.pop(partition.find(member), [])
            for name, others in list(groups.items()):
                if any(alike(member, other) for other in others):
                    partition.join(member, name)
                    own += groups.pop(name)
            own.append(member)
            groups[partition.find(member)] = own
    return partition


def bands(settings: NearDuplicates) -> tuple[int, int]:
    """Number of bands and rows a band: the longest rows that still miss few pairs.

    A pair of similarity s is proposed with probability 1 - (1 - s^rows)^bands.
    """
    for rows in range(settings.permutations, 1, -1):
        count = settings.permutations // rows
        if (1 - settings.threshold**rows) ** count <= MISSED:
            return count, rows
    return settings.permutations, 1


def _sketch(
    texts: Sequence[str], settings: NearDuplicates, seed: int, partition: Partition
) -> tuple[list[int], NDArray[np.uint64]]:
    """Join texts with equal shingles; of the others, the indices and a number for each band of the
    MinHash, shape (bands, texts)."""
    import numpy as np

    first_with: dict[bytes, int] = {}
    distinct: list[int] = []
    keys: list[NDArray[np.uint64]] = []
    for start in range(0, len(texts), BLOCK):
        sets: list[list[str]] = []
        for index in range(start, min(start + BLOCK, len(texts))):
            own = sorted(shingles(texts[index], settings.shingle_words))
            digest = hashlib.blake2b("\n".join(own).encode(), digest_size=16).digest()
            first = first_with.setdefault(digest, index)
            if first == index:
                distinct.append(index)
                sets.append(own)
            else:
                partition.join(first, index)
        if sets:
            keys.append(_band_keys(sets, settings, seed))
    count, _ = bands(settings)
    return distinct, np.concatenate([np.empty((count, 0), dtype=np.uint64), *keys], axis=1)


def _band_keys(sets: list[list[str]], settings: NearDuplicates, seed: int) -> NDArray[np.uint64]:
    import numpy as np
    from rensa import RMinHash

    count, rows = bands(settings)
    matrix = RMinHash.digest_matrix_from_token_sets(sets, settings.permutations, seed)
    digests = np.array(matrix.to_rows(), dtype=np.uint64)[:, : count * rows]
    parts = digests.reshape(len(sets), count, rows)
    keys = np.zeros((len(sets), count), dtype=np.uint64)
    for row in range(rows):  # FNV-1a, a digest at a time; it wraps at 64 bits
        keys = (keys ^ parts[:, :, row]) * np.uint64(0x100000001B3)
    return keys.T


def _buckets(keys: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Groups of at least two texts that agree in a whole band."""
    import numpy as np

    for band in keys:
        order = np.argsort(band, kind="stable")
        changes = np.flatnonzero(np.diff(band[order])) + 1
        for begin, end in pairwise([0, *changes.tolist(), len(band)]):
            if end - begin > 1:
                yield order[begin:end].tolist()
