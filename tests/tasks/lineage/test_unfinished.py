"""What an interrupted stage keeps belongs to its inputs and values, all of them."""

from __future__ import annotations

from pathlib import Path

from tasks.lineage import unfinished

INPUTS = {"data": "1", "tasks/sft.py": "2"}
VALUES = {"sft": {"epochs": 1}, "compute": {"threads": 2}}


def test_another_input_or_value_is_another_place() -> None:
    places = {
        unfinished.place(Path("state"), stage, inputs, values)
        for stage, inputs, values in [
            ("sft", INPUTS, VALUES),
            ("dpo", INPUTS, VALUES),
            ("sft", {**INPUTS, "data": "3"}, VALUES),
            ("sft", INPUTS, {**VALUES, "sft": {"epochs": 2}}),
            ("sft", INPUTS, {**VALUES, "compute": {"threads": 4}}),
        ]
    }
    assert len(places) == 5
    assert all(place.parent.parent == Path("state") for place in places)


def test_the_order_of_inputs_does_not_matter() -> None:
    turned = dict(reversed(INPUTS.items()))
    state = Path("state")
    assert unfinished.place(state, "sft", INPUTS, VALUES) == unfinished.place(
        state, "sft", turned, VALUES
    )


def test_outside_a_stage_nothing_is_kept() -> None:
    assert unfinished.folder() is None
