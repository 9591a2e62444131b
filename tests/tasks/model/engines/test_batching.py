"""Which prompts go together, and what they share."""

from __future__ import annotations

import pytest

from tasks.model.engines import batching
from tasks.model.engines.batching import batches, runs_of_equal_length, shared_prefix


def test_batches_hold_every_prompt_once_the_longest_first() -> None:
    prompts = [[0] * length for length in [3, 1, 3, 2, 3] + [5] * (batching.BATCH + 1)]
    found = batches(prompts, [4] * len(prompts), bytes_a_token=1)
    assert sorted(index for batch in found for index in batch) == list(range(len(prompts)))
    assert [len(batch) for batch in found] == [batching.BATCH, 6]
    lengths = [len(prompts[index]) for batch in found for index in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert batches([], [], 1) == []


def test_long_prompts_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CACHE_BYTES", 1000)
    prompts = [[0] * length for length in (300, 96, 46, 46, 46)]
    found = batches(prompts, [4] * 5, bytes_a_token=5)
    assert found == [[0], [1, 2], [3, 4]]  # the first does not fit at all, and still is answered


def test_runs_have_one_length() -> None:
    prompts = [[0] * length for length in (3, 3, 2, 1, 1)]
    assert list(runs_of_equal_length(prompts, range(5))) == [[0, 1], [2], [3, 4]]
    assert list(runs_of_equal_length(prompts, [])) == []


def test_a_shared_prefix_leaves_each_prompt_a_token() -> None:
    long = list(range(40))
    assert shared_prefix([[*long, 1], [*long, 2], [*long, 1, 5]]) == 40
    assert shared_prefix([long, [*long, 2]]) == 39
    assert shared_prefix([long, long]) == 39
    assert shared_prefix([[1, *long], [2, *long]]) == 0
    assert (
        shared_prefix([[*long[: batching.SHARED - 1], 7], [*long[: batching.SHARED - 1], 8]]) == 0
    )
    assert shared_prefix([long]) == shared_prefix([]) == 0
