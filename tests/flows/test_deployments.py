"""prefect.yaml: what Prefect reads of it, and what is refused before a server is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import deployments
from flows.deployments import BadFile
from flows.worker import POOL

ROOT = Path(__file__).parents[2]


def described() -> dict[str, Any]:
    read: dict[str, Any] = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())
    return read


@pytest.mark.parametrize("entry", described()["deployments"], ids=lambda entry: entry["name"])
def test_each_is_a_flow_of_that_name(entry: dict[str, Any]) -> None:
    from prefect.flows import load_flow_from_entrypoint

    path, _, name = entry["entrypoint"].partition(":")
    if not (ROOT / path).is_file():
        pytest.skip(f"{path} is not written yet")
    flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
    assert flow.name == entry["name"]
    assert not flow.persist_result  # which would be a pickle


def test_prefect_knows_every_key() -> None:
    """It leaves out silently what it does not know, or what it cannot read."""
    from prefect.cli.deploy._models import PrefectYamlModel

    read = PrefectYamlModel.model_validate(described())
    for entry, model in zip(described()["deployments"], read.deployments, strict=True):
        assert set(entry) <= set(type(model).model_fields)
        assert set(entry["work_pool"]) <= set(type(model.work_pool).model_fields)
        assert model.work_pool.name == POOL
        assert model.work_pool.work_queue_name in deployments.QUEUES
        assert model.concurrency_limit is None  # whose lease ends a run while the server is away


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("deployments: [", "does not list deployments"),
        ("name: tunetrail\n", "does not list deployments"),
        ("deployments: [{name: drift}]\n", "'entrypoint'"),
        ("deployments: [{name: drift, entrypoint: 'no.py:drift'}]\n", "there is no file no.py"),
    ],
)
def test_what_describes_no_deployment_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(text)
    with pytest.raises(BadFile, match=why):
        deployments.wanted(file)
    with pytest.raises(BadFile, match=r"`git checkout .*none\.yaml`"):
        deployments.wanted(tmp_path / "none.yaml")
