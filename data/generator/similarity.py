"""How alike two texts are, by the measure that the pipeline uses for near-duplicates."""

import re
from collections import Counter, defaultdict

SHINGLE = 3
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters or digits, in lower case."""
    return _WORD.findall(text.lower())


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of three words; a shorter text is one shingle."""
    found = words(text)
    last = max(1, len(found) - SHINGLE + 1)
    return frozenset(tuple(found[start : start + SHINGLE]) for start in range(last))


def jaccard(left: str, right: str) -> float:
    """Shared shingles over all shingles, 0 to 1."""
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


class Novelty:
    """Remembers texts and refuses one that is too close to an earlier one.

    The limit is kept well under the 0.6 that a near-duplicate search may use, so that the only
    near-duplicates in the data are those planted on purpose.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._sizes: list[int] = []
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def close(self, text: str) -> bool:
        """Whether a text is too close to one that is remembered."""
        own = shingles(text)
        shared = Counter(holder for shingle in own for holder in self._holders.get(shingle, ()))
        return any(
            count / (len(own) + self._sizes[holder] - count) >= self._limit
            for holder, count in shared.items()
        )

    def admit(self, text: str) -> bool:
        """Remember the text and say yes, or say no and forget it."""
        if self.close(text):
            return False
        own = shingles(text)
        for shingle in own:
            self._holders[shingle].append(len(self._sizes))
        self._sizes.append(len(own))
        return True
