"""The bill of materials of a version: CycloneDX 1.6, as a machine-learning BOM.

It holds what a security team asks for: the model with its hashes and a model card, the data and the
base model that it was made from, and every package of requirements.lock.  The library knows all of
it but the model card, which is set into its JSON.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

TASK = "text-generation"


def build(
    name: str,
    identity: str,
    facts: Mapping[str, Any],
    measured: Mapping[str, Any],
    verdict: Mapping[str, Any],
    lock: str,
    base: str,
    datasets: Mapping[str, str],
    finished: int,
) -> str:
    """The bill as JSON.

    Args:
        name: of the registered model.
        identity: sha256 of the provenance.
        facts: content of the provenance.
        measured: content of evaluate.metrics.json.
        lock: text of requirements.lock.
        base: the base model's name with its revision or hash.
        datasets: sha256 by path.
        finished: when the version was made, in milliseconds since 1970.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    model = _model(name, identity, facts)
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:sha256:{identity}"),
        metadata=BomMetaData(
            component=model, timestamp=datetime.fromtimestamp(finished / 1000, UTC)
        ),
        components=[_base_model(base, facts), *_data(datasets), *_libraries(lock)],
    )
    bom.register_dependency(model, list(bom.components))
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _card(datasets, measured, verdict)
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _model(name: str, identity: str, facts: Mapping[str, Any]) -> Component:
    """The model: its version is the identity, its parts are the files."""
    from cyclonedx.model.component import Component, ComponentType

    files = [
        Component(
            name=f"{folder}/{path}",
            type=ComponentType.FILE,
            bom_ref=f"file:{folder}/{path}",
            hashes=[_sha256(digest)],
        )
        for folder, manifest in facts["files"].items()
        for path, digest in manifest.items()
    ]
    return Component(
        name=name,
        version=identity,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{identity}",
        hashes=[_sha256(identity)],
        components=files,
    )


def _base_model(base: str, facts: Mapping[str, Any]) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    outputs = facts["base"]["outputs"]
    return Component(
        name=base.partition("@")[0],
        version=base.partition("@")[2] or None,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base",
        properties=[
            Property(name=f"tunetrail:sha256:{path}", value=output["sha256"])
            for path, output in outputs.items()
        ],
    )


def _data(datasets: Mapping[str, str]) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType

    for path, digest in datasets.items():
        yield Component(
            name=path, type=ComponentType.DATA, bom_ref=f"data:{path}", hashes=[_sha256(digest)]
        )


def _libraries(lock: str) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL
    from packaging.requirements import Requirement

    for line in map(str.strip, lock.splitlines()):
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        version = str(requirement.specifier).removeprefix("==")
        purl = PackageURL("pypi", None, requirement.name.lower(), version)
        yield Component(
            name=requirement.name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=str(purl),
            purl=purl,
        )


def _card(
    datasets: Mapping[str, str], measured: Mapping[str, Any], verdict: Mapping[str, Any]
) -> dict[str, Any]:
    """https://cyclonedx.org/docs/1.6/json/#components_items_modelCard"""
    return {
        "modelParameters": {
            "task": TASK,
            "datasets": [{"ref": f"data:{path}"} for path in datasets],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": list(_metrics(measured["candidates"][verdict["candidate"]]))
        },
    }


def _metrics(splits: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for split, metrics in splits.items():
        for metric, estimate in metrics.items():
            if estimate["value"] is None:
                continue
            entry: dict[str, Any] = {
                "type": metric,
                "slice": split,
                "value": str(estimate["value"]),
            }
            if estimate.get("low") is not None:
                entry["confidenceInterval"] = {
                    "lowerBound": str(estimate["low"]),
                    "upperBound": str(estimate["high"]),
                }
            yield entry


def _sha256(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
