"""The plots of dvc.yaml fit the files that the stages write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prepared_data import write_plots
from ruamel.yaml import YAML


@pytest.fixture(scope="module")
def drawn(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each plot of dvc.yaml as DVC fills its template, by file."""
    folder = tmp_path_factory.mktemp("plots")
    dvc = [str(Path(sys.executable).parent / "dvc")]
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run([*dvc, "init", "--quiet"], cwd=folder, check=True)
    shutil.copytree(root / ".dvc" / "plots", folder / ".dvc" / "plots")
    plots = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    (folder / "dvc.yaml").write_text(json.dumps({"plots": plots}))
    write_plots(folder / "data" / "formatted")
    (folder / "models" / "curves").mkdir(parents=True)
    curves = folder / "models" / "curves"
    (curves / "cpt.csv").write_text("step,loss,validation_loss\n1,2.5,\n2,2.0,2.25\n")
    for name in ("sft", "dpo"):
        (curves / f"{name}.csv").write_text("step,loss,validation_loss\n1,2.5,\n2,2.0,2.2\n")
    (folder / "models" / "report" / "plots").mkdir(parents=True)
    (folder / "models" / "report" / "plots" / "confusion.csv").write_text(
        "actual,predicted\na,a\na,b\nb,b\n"
    )
    command = [*dvc, "plots", "show", "--json"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)
    assert "errors" not in found
    assert set(found["data"]) == {name for plot in plots for name in plot}
    return {name: views[0]["content"] for name, views in found["data"].items()}


def test_every_plot_has_its_rows(drawn: dict[str, Any]) -> None:
    rows = {Path(name).name: len(plot["data"]["values"]) for name, plot in drawn.items()}
    assert rows == {
        "splits.csv": 3,
        "lengths.csv": 4,
        "classes.csv": 4,
        "clusters.csv": 3,
        "cpt.csv": 4,  # a row for the loss, and one for that of validation
        "sft.csv": 4,
        "dpo.csv": 4,
        "confusion.csv": 3,
    }


def test_no_anchor_is_left(drawn: dict[str, Any]) -> None:
    assert "<DVC_METRIC" not in json.dumps(drawn)
