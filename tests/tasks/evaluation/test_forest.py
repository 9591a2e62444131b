"""Forest plots share a scale and hold every interval."""

from typing import Any

from tasks.evaluation import forest


def one(kind: str, value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"kind": kind, "name": "x", "difference": {"value": value, "low": low, "high": high}}


def test_positions_on_one_scale() -> None:
    slices = [
        one("class", -0.1, -0.2, 0.0),
        one("class", 0.3, 0.2, 0.4),
        one("mood", None, None, None),
    ]
    found = forest.forest(slices)
    assert found is not None
    assert [title for title, _ in found.groups] == ["By expected answer", "By mood"]
    first, second = (line.mark for line in found.groups[0][1])
    assert first is not None
    assert second is not None
    assert first.high == found.zero < second.low < second.value < second.high <= 100
    assert found.groups[1][1][0].mark is None
    assert "0" in [tick.text for tick in found.ticks]


def test_zero_is_always_on_it_and_nothing_needs_a_plot() -> None:
    found = forest.forest([one("class", 0.5, 0.4, 0.6)])
    assert found is not None
    assert 0 <= found.zero < 100
    assert forest.forest([]) is None
