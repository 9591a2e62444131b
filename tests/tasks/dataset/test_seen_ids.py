"""An id comes a second time exactly when it was there before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.dataset import seen_ids
from tasks.dataset.seen_ids import SeenIds


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=2)))
def test_it_agrees_with_a_set(ids: list[str]) -> None:
    seen, known = SeenIds(), set[str]()
    for id in ids:
        assert seen.add(id) == (id not in known)
        known.add(id)


def test_none_of_many_is_taken_for_another() -> None:
    seen = SeenIds()
    ids = [str(number) for number in range(100_000)]
    assert all(seen.add(id) for id in ids)
    assert not any(seen.add(id) for id in ids)


def test_a_digest_that_straddles_two_others_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        def __init__(self, text: bytes, digest_size: int) -> None:
            self._text = text

        def digest(self) -> bytes:
            return b"ab" + self._text

    plain: Any = Digest
    monkeypatch.setattr(seen_ids, "blake2b", plain)
    seen = SeenIds()
    found = [seen.add(id) for id in ("0123456789abcd", "efghijklmnopqr", "789abcdefghijk")]
    assert found == [True, True, True]
    assert not seen.add("789abcdefghijk")
