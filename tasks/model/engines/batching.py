"""Which prompts are answered together, and what of them is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.model.engines.protocol import Ids

BATCH = 64
"""Prompts answered at once at most; bounds memory, and how seldom progress is reported."""
CACHE_BYTES = 2**30
"""Of keys and values of a batch; longer prompts come in smaller batches, at the least one by one."""
READ_AT_ONCE = 4096
"""Prompt tokens of one forward pass: what it holds besides the cache grows with them."""
KEPT_SHARE = 0.75
"""Rows that have ended leave when so few are left: making a batch smaller copies its cache."""
SHARED = 16
"""Tokens from which a common beginning is computed once: a shorter one costs more than it saves."""


def batches(
    prompts: Sequence[Ids], new: Sequence[int], bytes_a_token: int, largest: int = BATCH
) -> list[list[int]]:
    """Indexes of prompts of similar length, longest first, as many at once as memory allows.

    Longest first, so that a model that does not fit into memory says so at once.

    Args:
        new: how many tokens each answer may have.
        bytes_a_token: what one token's keys and values take in all layers.
        largest: batch.
    """
    found: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)):
        longest = max(longest, len(prompts[index]) + new[index])
        full = (len(batch) + 1) * longest * bytes_a_token > CACHE_BYTES
        if batch and (full or len(batch) == largest):
            found.append(batch)
            batch, longest = [], len(prompts[index]) + new[index]
        batch.append(index)
    return [*found, batch] if batch else found


def runs_of_equal_length(prompts: Sequence[Ids], indexes: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours among `indexes` whose prompts have one length, so that none needs padding."""
    run: list[int] = []
    for index in indexes:
        if run and len(prompts[run[0]]) != len(prompts[index]):
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def shared_prefix(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, if computing them once pays, else 0.

    Each prompt keeps a token of its own: what comes next is read from its last one.
    """
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in order, so what these two share all share
    most = min(map(len, prompts)) - 1
    length = 0
    while length < most and first[length] == last[length]:
        length += 1
    return length if length >= SHARED else 0
