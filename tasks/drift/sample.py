"""A sample of records that come one at a time, in memory that does not grow with them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any


class Sample:
    """The records whose digest of source and id is lowest, as good as drawn; of records with a group
    the group's digest, so that whole conversations are drawn.  The same whatever their order."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._key = str(seed).encode()
        self._heap: list[tuple[int, int, Mapping[str, Any]]] = []
        self.seen = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take note of a record."""
        self.seen += 1
        name = record["group"] if record["group"] is not None else record["id"]
        text = f"{record['source']}\0{name}".encode()
        rank = int.from_bytes(blake2b(text, digest_size=8, key=self._key).digest(), "big")
        entry = (-rank, -self.seen, record)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Those that were drawn, in the order in which they came."""
        return (record for _, _, record in sorted(self._heap, key=lambda entry: -entry[1]))
