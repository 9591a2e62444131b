"""`tunetrail lineage` over a real registry: versions, the work tree, and an MLflow that is away."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from flows import lineage
from flows.cli import app
from tasks.lineage import hashes

if TYPE_CHECKING:
    from work_trees import Pipeline

pytest_plugins = ("work_trees",)


def test_a_hash_leads_to_the_version_and_back_to_the_data(pipeline: Pipeline) -> None:
    pipeline.register()
    merged = hashes.dvc_md5(Path("models/merged"))
    raw = hashes.dvc_md5(Path("data/raw"))
    text = lineage.show(merged[:10], code=False)
    assert text.startswith(f"models/merged, md5 {merged}, sha256 ")
    before, after = text.split("went into")
    assert f"source  data/raw {raw[:8]}" in before
    assert "shipments-candidates@1 (challenger), identity " in after


def test_the_version_leads_to_the_data(pipeline: Pipeline) -> None:
    pipeline.register()
    for name in ("shipments-candidates@1", "shipments-candidates@challenger"):
        assert "data/raw" in lineage.show(name, code=False)


def test_a_work_tree_that_is_not_registered_is_known_too(
    pipeline: Pipeline, closed_port: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    pipeline.register()
    with caplog.at_level(logging.WARNING):
        text = lineage.show(hashes.dvc_md5(Path("models/onnx")), code=False)
    assert "this work tree, identity " in text
    assert "does not answer" in caplog.text
    assert "only what lies in this work tree is shown" in caplog.text


def test_the_command_draws_and_refuses(pipeline: Pipeline) -> None:
    Path("dvc.yaml").touch()
    pipeline.register()
    drawn = CliRunner().invoke(app, ["lineage", "shipments-candidates@1", "--svg", "l.svg"])
    assert (drawn.exit_code, drawn.stdout) == (0, f"drawn: open {Path('l.svg').absolute()}\n")
    assert "merge" in Path("l.svg").read_text()
    drawn = CliRunner().invoke(app, ["lineage", "shipments-candidates@1", "--svg", "absent/l.svg"])
    assert drawn.exit_code == 2
    assert drawn.stderr.endswith("absent/l.svg: No such file or directory; choose another file\n")
    refused = CliRunner().invoke(app, ["lineage", "12345678"])
    assert refused.exit_code == 2
    assert "has the hash '12345678'" in refused.stderr
