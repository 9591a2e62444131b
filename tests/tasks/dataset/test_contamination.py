"""Held-out texts inside longer ones, and how far a text is from training."""

import pytest

from tasks.dataset import contamination
from tasks.dataset.contamination import Overlap, nearest

HELD_OUT = "the container is still held by customs in Oslo and nobody knows when"
SHORT = "where is my parcel"


def overlap() -> Overlap:
    return Overlap([("s 1", SHORT), ("s 2", HELD_OUT)], 0.7)


def test_a_text_that_holds_a_held_out_one() -> None:
    page = f"Examples of messages.\n\n1. {HELD_OUT.upper()}!\n2. and so on"
    assert overlap().find(page) == "s 2"


def test_most_of_it_is_enough() -> None:
    cut = " ".join(HELD_OUT.split()[1:])
    assert overlap().find(f"we read: {cut}") == "s 2"
    half = " ".join(HELD_OUT.split()[:9])
    assert overlap().find(f"we read: {half}") is None


def test_phrases_that_are_too_common_to_look_for() -> None:
    assert overlap().find(f"Customers ask {SHORT} many times a day") is None
    assert Overlap([("s 1", SHORT)], 0.7).find(SHORT) is None


def test_nearest_training_text() -> None:
    train = ["the pallet is damaged", "customs holds the goods"]
    same, near, far = nearest(["The pallet is DAMAGED!", "the pallet is late", "xyz"], train)
    assert same == 1.0
    assert 0 < near < 1
    assert far == 0.0


def test_of_many_training_texts_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "COMPARED", 2)
    assert nearest(["a b", "c d", "e f", "g h"], ["a b", "c d", "e f", "g h"]) == [1, 0, 1, 0]


def test_nothing_to_compare_with() -> None:
    assert nearest(["a"], ["?"]) == nearest(["a"], []) == [0.0]
