"""What the report knows of the data."""

import json
from pathlib import Path

import pytest
from prepared_data import FORMAT, write_metrics, write_plots

from tasks.evaluation import preparation
from tasks.evaluation.preparation import Flow
from tasks.lineage.stage import StageError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_plots(tmp_path / "formatted")
    return tmp_path / "formatted"


def test_everything_is_read(data: Path, tmp_path: Path) -> None:
    found = preparation.read(data, write_metrics(tmp_path))
    assert found.splits == {"train": 40, "test": 8, "hard_test": 2}
    assert found.lengths == {"train": {16: 30, 32: 8, 80: 2}, "test": {32: 8}}
    assert found.classes["test"] == {'{"category":"a"}': 5, "other": 3}
    assert found.clusters == {"1": 45, "2": 4, "3": 3}
    assert found.flows == [
        Flow("ingest", 70, 66, {"duplicate_id": 2, "nul": 2}),
        Flow("validate", 66, 60, {"contradiction": 4, "personal_data_card": 2}),
        Flow("format", 60, 52, {"near_duplicate": 5, "leak": 3}),
    ]
    assert list(found.flows[2].rejected) == ["near_duplicate", "leak"]
    assert found.quality == {"consistency": 1.0, "clusters": 0.875, "class_balance": None}
    assert found.few_rows
    assert found.hardness == {"novelty": (0.22, 0.41), "tokens": (31.5, 44.0)}
    assert found.too_short == 2


def test_a_missing_plot(data: Path, tmp_path: Path) -> None:
    (data / "plots" / "classes.csv").unlink()
    with pytest.raises(
        StageError, match=r"classes.csv does not exist; .* `dvc repro -s -f format`"
    ):
        preparation.read(data, write_metrics(tmp_path))


def test_a_plot_with_other_columns(data: Path, tmp_path: Path) -> None:
    (data / "plots" / "lengths.csv").write_text("split,words,rows\ntest,3,4\n")
    with pytest.raises(
        StageError, match=r"lengths.csv lacks one of the columns rows, split, token"
    ):
        preparation.read(data, write_metrics(tmp_path))


def test_rejects_that_do_not_add_up(data: Path, tmp_path: Path) -> None:
    paths = write_metrics(tmp_path)
    paths["format"].write_text(json.dumps({**FORMAT, "rows_rejected": 9}))
    with pytest.raises(StageError, match=r"format.metrics.json has 9 rows rejected, and 8 by reas"):
        preparation.read(data, paths)
