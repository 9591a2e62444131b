"""Which ids a stream has had, in about 20 bytes each: a set of Python objects takes four times that."""

from __future__ import annotations

from hashlib import blake2b

_DIGEST_BYTES = 16
"""Two of a billion ids share 128 bits with a probability below 1e-20: a false one costs a row."""
_REST_BYTES = _DIGEST_BYTES - 2


class SeenIds:
    """Digests of ids, by their first two bytes; a bucket holds what is behind those, one after the
    other."""

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * (1 << 16)

    def add(self, id: str) -> bool:
        """Whether the id is new; it is not from then on."""
        digest = blake2b(id.encode(), digest_size=_DIGEST_BYTES).digest()
        number, rest = digest[0] << 8 | digest[1], digest[2:]
        bucket = self._buckets[number]
        if bucket is None:
            self._buckets[number] = bytearray(rest)
            return True
        at = bucket.find(rest)
        while at >= 0:
            if at % _REST_BYTES == 0:  # else it only straddles two of them
                return False
            at = bucket.find(rest, at + 1)
        bucket += rest
        return True
