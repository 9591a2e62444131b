"""Loss curves, from CSV to the points of a drawing."""

from pathlib import Path

import pytest

from tasks.evaluation import curves
from tasks.evaluation.curves import Losses


def test_curves_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "cpt.csv").write_text("step,loss\n")
    (tmp_path / "sft.csv").write_text("step,loss,learning_rate\n1,2.5,0.1\n2,2.25,0.1\n")
    (tmp_path / "dpo.csv").write_text("step,loss,validation_loss\n1,0.6931,\n2,0.5,0.625\n")
    found = curves.read(tmp_path)
    assert found == {
        "cpt": Losses([], []),
        "sft": Losses([(1.0, 2.5), (2.0, 2.25)], []),
        "dpo": Losses([(1.0, 0.6931), (2.0, 0.5)], [(2.0, 0.625)]),
    }


def test_a_falling_loss_is_drawn_downwards_and_inside() -> None:
    plot = curves.plot("sft", Losses([(step, 7 - step * 0.02) for step in range(1, 301)], []))
    points = [tuple(map(float, point.split(","))) for point in plot.line.split()]
    assert len(points) == curves.MOST_POINTS
    assert points == sorted(points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # y grows downwards
    assert all(curves.LEFT <= x <= curves.WIDTH - curves.RIGHT for x, _ in points)
    assert all(curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM for _, y in points)
    assert (plot.steps, plot.first, plot.last) == (300, 6.98, 1.0)
    assert [tick.text for tick in plot.ticks_x] == ["1", "300"]


def test_a_single_step_is_drawn() -> None:
    plot = curves.plot("dpo", Losses([(1.0, 0.6931)], []))
    assert (plot.dots, plot.best) == ([], None)
    assert len(plot.line.split()) == 1
    assert [tick.text for tick in plot.ticks_x] == ["1"]


def test_validation_losses_stand_on_the_same_scale() -> None:
    training = [(step, 2.0 - step * 0.1) for step in range(1, 11)]
    plot = curves.plot("cpt", Losses(training, [(5.0, 4.0), (10.0, 3.5)]))
    assert plot.best == 3.5
    ends = [tuple(map(float, point.split(","))) for point in plot.line.split()]
    assert plot.validation == " ".join(f"{x},{y}" for x, y in plot.dots)
    assert plot.dots[-1][0] == ends[-1][0]  # the same step
    assert plot.dots[0][1] < plot.dots[1][1] < ends[0][1]  # higher losses stand higher
    assert all(y >= curves.TOP for _, y in plot.dots)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 0.9, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.9, 7.0, [0.0, 2.0, 4.0, 6.0, 8.0]),
        (0.684, 0.6931, [0.68, 0.685, 0.69, 0.695]),
        (2.0, 2.0, [2.0, 2.5]),
        (0.0, 0.0, [0.0, 0.5]),
        (-0.5, 0.5, [-0.5, 0.0, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert curves.nice_ticks(low, high, 4) == ticks
