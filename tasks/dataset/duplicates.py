"""Near-duplicates: texts whose word shingles agree.

MinHash (Broder 1997) with locality-sensitive hashing (Leskovec, Rajaraman, Ullman: Mining of
Massive Datasets, 3.4) proposes pairs; each is then compared exactly, so a cluster holds no guess.
Words and shingles are hashed to 64 bits in numpy, a block of texts at a time. Two different shingles
of a pair of thousand-word texts share a hash with probability 1e-13: the comparison is exact for
all purposes. Nothing depends on Python's own hash, the machine or the order of sets.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.params import NearDuplicates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MISSED = 1e-3
"""Highest probability that a pair just at the threshold is not proposed, and that it is proposed
but not compared."""

BLOCK = 300_000
"""Characters that are hashed at once, about 40 bytes each; a longer text is a block of its own."""

WINDOW = 32
"""Texts of its bucket that a text is compared with: those that come next among `texts`."""

PATIENCE = 2_000
"""Comparisons in vain after which a text is left alone: what bounds the work on boilerplate."""

EXACT_COST = 20
"""What an exact comparison counts for; one that the sketches decide counts for 1."""

THREADS = os.cpu_count() or 1
"""Blocks that are hashed at the same time; the result is the same for any number."""

_CELLS = 500_000
"""Shingles of the pairs that are compared at once."""

_UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece"  # Thai, Lao
    "\u1000-\u103f\u1050-\u109d\u1780-\u17d3"  # Burmese, Khmer
    "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Kana
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

# Odd constants of 64 bits: the golden ratio (Knuth 6.4) and those of MurmurHash3's finaliser.
_GOLDEN = 0x9E3779B97F4A7C15
_MURMUR = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)


def words(text: str) -> list[str]:
    """Runs of letters or digits, case folded.

    Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) have no
    such runs: there each character stands for itself, and a shingle is an n-gram of characters.
    """
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
        import numpy as np

        self._parent = np.arange(size)

    def find(self, member: int) -> int:
        """The name of a member's set."""
        parent = self._parent
        while (above := int(parent[member])) != member:
            parent[member] = parent[above]
            member = int(parent[member])
        return member

    def join(self, left: int, right: int) -> None:
        """Make two members' sets one."""
        left, right = sorted((self.find(left), self.find(right)))
        self._parent[right] = left

    def join_pairs(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Make the sets of left[i] and right[i] one, for every i."""
        import numpy as np

        while len(left):
            names = self.labels()
            left, right = names[left], names[right]
            apart = left != right
            left, right = left[apart], right[apart]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def labels(self) -> NDArray[np.int64]:
        """The name of every member's set, shape (n,)."""
        while True:
            above = self._parent[self._parent]
            if (above == self._parent).all():
                return above
            self._parent = above

    def names(self) -> list[int]:
        """The name of every member's set."""
        names: list[int] = self.labels().tolist()
        return names


def clusters(texts: Sequence[str], settings: NearDuplicates, seed: int) -> Partition:
    """Texts joined wherever two agree to the threshold, and so through chains of such pairs.

    Texts with equal shingles are one (by a digest of 64 bits); any other pair that is joined was
    compared. A pair at the threshold is missed with a probability of about MISSED. More are missed
    among forms and boilerplate: in a bucket of more than WINDOW texts that are not near-duplicates
    of each other a pair must agree in two bands, and PATIENCE ends the search of each text. So time
    grows with the texts, never with their pairs. Memory: 8 bytes a shingle and one a permutation of
    each text (4 where the threshold leaves less than 4 rows a band).
    """
    import numpy as np

    partition = Partition(len(texts))
    if not texts:
        return partition
    sketches = _sketch(texts, settings, seed)
    _, first, inverse = np.unique(sketches.digests, return_index=True, return_inverse=True)
    partition.join_pairs(first[inverse], np.arange(len(texts)))
    comparison = _Comparison(sketches, settings.threshold, partition)
    members = np.sort(first[sketches.sizes[first] > 0])
    count, rows = bands(settings)
    for band in range(count):
        keys = sketches.keys(members, band * rows, rows)
        crowd, buckets = comparison.run(members, keys)
        for later in range(band + 1, count if len(crowd) else 0):
            split = _mixed(buckets) + sketches.keys(crowd, later * rows, rows)
            comparison.run(crowd, split)
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


@dataclass(frozen=True)
class _Sketches:
    """What is kept of n texts; `shingles` holds each text's own, sorted, without repeats."""

    shingles: NDArray[np.uint64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """Shingles of a text; 0 for one without words, which is near to its equals alone."""
    digests: NDArray[np.uint64]
    """Of the set of shingles: equal sets have equal ones."""
    signatures: NDArray[np.unsignedinteger]
    """The lowest bits of the MinHashes (Li and König 2010), shape (n, permutations)."""

    def keys(self, members: NDArray[np.int64], start: int, rows: int) -> NDArray[np.uint64]:
        """A number for a band of the members' signatures."""
        import numpy as np

        band = self.signatures[members, start : start + rows]
        keys = np.zeros(len(members), dtype=np.uint64)
        for column in band.T:
            keys = _mixed(keys) + column
        return keys


def _sketch(texts: Sequence[str], settings: NearDuplicates, seed: int) -> _Sketches:
    import numpy as np

    # A band needs some 32 bits, or unlike texts would meet in it by chance.
    kept = np.uint8 if bands(settings)[1] >= 4 else np.uint32
    signatures = np.zeros((len(texts), settings.permutations), dtype=kept)
    digests = np.zeros(len(texts), dtype=np.uint64)
    sizes = np.zeros(len(texts), dtype=np.int64)
    permutations = _permutations(settings.permutations, seed)

    def sketch(begin: int, block: Sequence[str]) -> NDArray[np.uint64]:
        end = begin + len(block)
        flat, own = _block_shingles(block, settings.shingle_words)
        sizes[begin:end] = own
        for index in np.flatnonzero(own == 0).tolist():
            digest = hashlib.blake2b(block[index].encode("utf-8", "surrogatepass"), digest_size=8)
            digests[begin + index] = int.from_bytes(digest.digest(), "little")
        filled = begin + np.flatnonzero(own)
        if len(filled):
            starts = np.cumsum(sizes[filled]) - sizes[filled]
            digests[filled] = np.add.reduceat(_mixed(flat), starts)
            minhashes = _minhashes(flat, starts, permutations)
            signatures[filled] = minhashes >> np.uint32(32 - 8 * signatures.itemsize)
        return flat

    whole = _joined(_in_threads(sketch, blocks(texts)))
    starts = np.cumsum(sizes) - sizes
    return _Sketches(whole, starts, sizes, digests, signatures)


def _joined(parts: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The parts in one array, which grows in place: memory never holds them twice."""
    import numpy as np

    whole = np.empty(0, dtype=np.uint64)
    end = 0
    for part in parts:
        if end + len(part) > len(whole):
            whole.resize((end + len(part)) * 9 // 8, refcheck=False)
        whole[end : end + len(part)] = part
        end += len(part)
    whole.resize(end, refcheck=False)
    return whole


def _in_threads(
    sketch: Callable[[int, Sequence[str]], NDArray[np.uint64]], found: Iterable[Sequence[str]]
) -> Iterator[NDArray[np.uint64]]:
    """The results for the blocks, in order. numpy lets go of the interpreter's lock while it works;
    blocks are read here, a few ahead, so that `texts` may be a file that only one thread can read.
    """
    waiting: deque[Future[NDArray[np.uint64]]] = deque()
    begin = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for block in found:
            waiting.append(pool.submit(sketch, begin, block))
            begin += len(block)
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in order, as many at a time as have BLOCK characters together, one at least."""
    block: list[str] = []
    characters = 0
    for text in texts:
        if block and characters + len(text) > BLOCK:
            yield block
            block, characters = [], 0
        block.append(text)
        characters += len(text) + 1
    if block:
        yield block


def _block_shingles(
    texts: Sequence[str], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the shingles of each text, sorted and without repeats, and how many each has."""
    import numpy as np

    hashes, counts = word_hashes(texts)
    starts = np.cumsum(counts) - counts
    values = np.empty_like(hashes)
    runs = hashes  # the hash of as many words as the loop has come to, from each word on
    for length in range(1, size):
        short = starts[counts == length]
        values[short] = runs[short]
        runs = _mixed(runs[:-1]) + hashes[length:]
    number = np.minimum(counts, np.maximum(counts - size + 1, 1))
    long = counts >= size
    places = _ranges(starts[long], number[long])
    values[places] = runs[places]
    flat = values[_ranges(starts, number)]

    for begin, end in pairwise([0, *np.cumsum(number).tolist()]):
        flat[begin:end].sort()
    new = np.ones(len(flat), dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=new[1:])
    filled = np.flatnonzero(number)
    starts = np.cumsum(number)[filled] - number[filled]
    new[starts] = True
    if len(filled):
        number[filled] = np.add.reduceat(new, starts, dtype=np.int64)
    return flat[new], number


def word_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the words of all texts, one after the other, and how many each text has.

    A word's hash is a polynomial over numbers that stand for its characters, mixed. All words are
    taken at once: characters are weighted by their place in the block, sums divided by the weight of
    the word's first place.
    """
    import numpy as np

    folded = [text.casefold() for text in texts]
    codes = np.frombuffer("\n".join(folded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds, numbers = _alphabet()
    kind = kinds[codes]
    begins = kind != _NO_WORD
    begins[1:] &= (kind[1:] == _ALONE) | (kind[:-1] != _LETTER)
    starts = np.flatnonzero(begins)
    ends = np.cumsum([len(text) + 1 for text in folded])
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)
    if not len(starts):
        return np.empty(0, dtype=np.uint64), counts
    powers, inverses = _powers(1 << len(codes).bit_length())
    sums = np.add.reduceat(numbers[codes] * powers[: len(codes)], starts)
    return _mixed(sums * inverses[starts]), counts


_NO_WORD, _LETTER, _ALONE = range(3)


@cache
def _alphabet() -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """For each character whether it belongs to words, as `words` says, and a number; 0 if not."""
    import numpy as np

    codes = np.arange(sys.maxunicode + 1, dtype="<u4")
    everything = codes.tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(len(everything), _NO_WORD, dtype=np.uint8)
    for pattern, kind in ((r"[^\W_]+", _LETTER), (rf"[{_UNSPACED}]+", _ALONE)):
        for match in re.finditer(pattern, everything):
            kinds[match.start() : match.end()] = kind
    numbers = _mixed(codes + np.uint64(1))
    return kinds, np.where(kinds == _NO_WORD, np.uint64(0), numbers)


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number and their inverses, modulo 2^64."""
    import numpy as np

    def powers(base: int) -> NDArray[np.uint64]:
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_GOLDEN), powers(pow(_GOLDEN, -1, 2**64))


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """MurmurHash3's finaliser, a bijection in which every bit depends on every other."""
    import numpy as np

    shift = np.uint64(33)
    mixed = numbers ^ (numbers >> shift)
    for factor in _MURMUR:
        mixed *= np.uint64(factor)
        mixed ^= mixed >> shift
    return mixed


def _ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each start on, as many as its size says, one after the other."""
    import numpy as np

    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)


def _permutations(count: int, seed: int) -> NDArray[np.uint32]:
    """Factors, which are odd, and summands: h * factor + summand permutes the numbers of 32 bits."""
    import numpy as np

    drawn = np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)  # SplitMix64
    numbers = (_mixed(drawn + np.uint64(seed % 2**64)) >> np.uint64(32)).astype(np.uint32)
    numbers = numbers.reshape(2, count)
    numbers[0] |= np.uint32(1)
    return numbers


def _minhashes(
    shingles: NDArray[np.uint64], starts: NDArray[np.int64], permutations: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """The least of each text's hashes under each permutation, mixed, shape (texts, permutations)."""
    import numpy as np

    hashes = (shingles >> np.uint64(32)).astype(np.uint32)
    permuted = np.empty_like(hashes)
    least = np.empty((permutations.shape[1], len(starts)), dtype=np.uint32)
    for row, (factor, summand) in zip(least, permutations.T, strict=True):
        np.multiply(hashes, factor, out=permuted)
        np.add(permuted, summand, out=permuted)
        np.minimum.reduceat(permuted, starts, out=row)
    return (least * np.uint32(_GOLDEN >> 32 | 1)).T


class _Comparison:
    """Joins pairs of texts that share a bucket and are near-duplicates."""

    def __init__(self, sketches: _Sketches, threshold: float, partition: Partition) -> None:
        import numpy as np

        self._sketches = sketches
        self._threshold = threshold
        self._partition = partition
        self._fewest = _fewest_equal(sketches.signatures.shape[1], threshold)
        self._names = partition.labels()
        self._in_vain = np.zeros(len(sketches.sizes), dtype=np.int64)

    def run(
        self, members: NDArray[np.int64], keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Compare the members of each bucket; those of buckets too large for it, and their keys.

        In the order of keys, each is compared with the one after it, then with the second after it,
        and so on, all buckets at once, until each bucket is one cluster: texts that are all alike
        are done after the first step.
        """
        import numpy as np

        low = np.uint64(2**32 - 1)
        ordered = np.sort(_mixed(keys) & ~low | np.arange(len(keys), dtype=np.uint64))
        members, keys = members[ordered & low], ordered >> np.uint64(32)
        for distance in range(1, WINDOW + 1):
            members, keys = self._undecided(members, keys, distance)
            if not len(members):
                break
            same = np.flatnonzero(keys[distance:] == keys[:-distance])
            left, right = members[same], members[same + distance]
            apart = self._names[left] != self._names[right]
            left, right = left[apart], right[apart]
            near, cost = self._compare(left, right)
            if near.any():
                self._partition.join_pairs(left[near], right[near])
                self._names = self._partition.labels()
            for side in (left, right):  # no text stands twice on a side
                self._in_vain[side[~near]] += cost[~near]
        return self._undecided(members, keys, WINDOW + 1)

    def _undecided(
        self, members: NDArray[np.int64], keys: NDArray[np.uint64], distance: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """What is in a bucket of more than `distance` members and more than one cluster."""
        import numpy as np

        patient = self._in_vain[members] < PATIENCE
        members, keys = members[patient], keys[patient]
        if not len(members):
            return members, keys
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        sizes = np.diff(starts, append=len(keys))
        names = self._names[members]
        mixed = np.minimum.reduceat(names, starts) != np.maximum.reduceat(names, starts)
        kept = np.repeat(mixed & (sizes > distance), sizes)
        return members[kept], keys[kept]

    def _compare(
        self, left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each pair is similar to the threshold, and what it cost to find out.

        Sizes and MinHashes rule most pairs out; what is left is compared exactly.
        """
        import numpy as np

        sizes, signatures = self._sketches.sizes, self._sketches.signatures
        total = sizes[left] + sizes[right]
        least = np.minimum(sizes[left], sizes[right])
        near = least / (total - least) >= self._threshold
        cost = np.ones(len(left), dtype=np.int64)
        maybe = np.flatnonzero(near)
        at_once = max(1, _CELLS // signatures.shape[1])
        for begin in range(0, len(maybe), at_once):
            pairs = maybe[begin : begin + at_once]
            equal = signatures.take(left[pairs], axis=0) == signatures.take(right[pairs], axis=0)
            near[pairs] = equal.sum(axis=1, dtype=np.uint32) >= self._fewest
        maybe = np.flatnonzero(near)
        cost[maybe] = EXACT_COST
        maybe = maybe[np.argsort(total[maybe], kind="stable")]
        while len(maybe):
            at_once = max(1, _CELLS // int(total[maybe[-1]]))
            maybe, pairs = maybe[:-at_once], maybe[-at_once:]
            near[pairs] = self._jaccard(left[pairs], right[pairs]) >= self._threshold
        return near, cost

    def _jaccard(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Each pair's similarity; in a row with the shingles of both, what is shared stands twice."""
        import numpy as np

        starts, sizes = self._sketches.starts, self._sketches.sizes
        total = sizes[left] + sizes[right]
        filler = np.uint64(2**64 - 1)
        both = np.full((len(left), total.max()), filler)
        for side, column in ((left, np.zeros_like(left)), (right, sizes[left])):
            rows = np.repeat(np.arange(len(side)), sizes[side])
            places = _ranges(starts[side], sizes[side])
            both[rows, _ranges(column, sizes[side])] = self._sketches.shingles[places]
        both.sort(axis=1)
        twice = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] != filler)
        shared = np.count_nonzero(twice, axis=1)
        similarity: NDArray[np.float64] = shared / (total - shared)
        return similarity


def _fewest_equal(permutations: int, threshold: float) -> int:
    """Equal MinHashes that a pair at the threshold has, but for a probability of MISSED.

    Their number is binomial; kept bits that are equal by chance only add to it.
    """
    if threshold == 1:
        return permutations
    log_odds = math.log(threshold) - math.log1p(-threshold)
    base = math.lgamma(permutations + 1) + permutations * math.log1p(-threshold)
    below = 0.0
    for equal in range(permutations):
        ways = base - math.lgamma(equal + 1) - math.lgamma(permutations - equal + 1)
        below += math.exp(ways + equal * log_odds)
        if below > MISSED:
            return equal
    return permutations
