"""The model card: the numbers of the report as Markdown, with the metadata of Hugging Face.

Format: https://huggingface.co/docs/hub/model-cards and its `model-index`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tasks.evaluation import conclusions, contamination, markdown
from tasks.evaluation.conclusions import Document
from tasks.evaluation.gates import Verdict
from tasks.evaluation.preparation import Preparation
from tasks.evaluation.result_table import Split

TASKS = {
    "classification": "text-classification",
    "structured": "text-generation",
    "generation": "text-generation",
}
"""What Hugging Face calls the tasks."""
DATA = "data/formatted"


def render(
    *,
    document: Document,
    verdict: Verdict,
    splits: Sequence[Split],
    preparation: Preparation,
    records: Sequence[Mapping[str, Any]],
    confidence: float,
) -> str:
    """The card of the final candidate.

    The version's identity is not in it: the card is one of the files that make that identity.

    Args:
        records: of the stages that made the model, which name its base and its data.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    params = _params(records)
    environment = Environment(  # Markdown: what is not ours goes through `escape` or `code`
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(escape=markdown.escape, code=markdown.code)
    environment.globals.update(
        number=conclusions.number,
        gate_name=conclusions.gate_name,
        gate_result=conclusions.result,
        gates_held=conclusions.gates_held,
        methods=conclusions.METHODS,
    )
    text = environment.get_template("model_card.md.j2").render(
        metadata=_yaml(_metadata(document, splits, records, params, confidence)),
        document=document,
        verdict=verdict,
        splits=splits,
        percent=conclusions.percent(confidence),
        base=_base(params),
        methods_used=_methods(params),
        hashes=_hashes(records),
        preparation=preparation,
        headline=conclusions.headline(document, verdict, confidence),
        limitations=_limitations(document, verdict, confidence),
    )
    return text.rstrip() + "\n"


def _params(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every section of params.yaml that a stage of the model read."""
    return {name: values for record in records for name, values in record["params"].items()}


def _metadata(
    document: Document,
    splits: Sequence[Split],
    records: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    confidence: float,
) -> dict[str, Any]:
    """The card's front matter. Language and licence are unknown here, so they are left out."""
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    base, task = params.get("base", {}), TASKS[document["task"]]
    hub = base["hub"]["repo"] if base.get("source") == "hub" else None
    revision = _hashes(records).get(DATA)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=DATA,
            dataset_name=f"{split.name} of {DATA}",
            dataset_split=split.name,
            dataset_revision=revision,
            metric_type=metric,
            metric_value=found["value"],
            metric_name=f"{metric} ({conclusions.interval(found, confidence)})",
        )
        for split in splits
        for metric, found in split.candidates.get(document["final"], {}).items()
        if metric != contamination.METRIC and found["value"] is not None
    ]
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["tunetrail", *(method for _, method in _methods(params))],
    }
    if hub:
        metadata |= {"base_model": hub, "base_model_relation": "finetune"}
    return metadata | {"model-index": eval_results_to_model_index("tuned model", results)}


def _yaml(values: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(dict(values), text)
    return text.getvalue()


def _base(params: Mapping[str, Any]) -> str:
    """Which base model, without the folder that it was on this machine."""
    base = params.get("base")
    if base is None:
        return "unknown"
    source = base["source"]
    settings = base[source]
    if source == "scratch":
        size = f"{settings['layers']} layers, width {settings['hidden_size']}"
        return f"a small Llama that was built from the text of this project ({size})"
    if source == "hub":
        return f"{settings['repo']} at revision {settings['revision']}"
    if settings.get("package"):
        return f"the GGUF file of the package {settings['package']}"
    return f"{PurePath(settings['path']).name}, from a {'folder' if source == 'local' else 'file'}"


def _methods(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By stage, the method with which it trains its weights."""
    return [
        (stage, str(params[stage]["method"]))
        for stage in ("cpt", "sft", "dpo")
        if "method" in params.get(stage, {})
    ]


def _hashes(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The sha256 of the data and of the models, by path."""
    return {
        path: output["sha256"]
        for record in records
        for path, output in record["outputs"].items()
        if output["sha256"] and not path.endswith((".json", ".jsonl", ".csv"))
    }


def _limitations(document: Document, verdict: Verdict, confidence: float) -> list[str]:
    """What the numbers say against the model."""
    found = [
        f"The gate on {conclusions.gate_name(gate)} fails: {gate['why']}."
        for gate in verdict["gates"]
        if not gate["passed"]
    ]
    forgotten = conclusions.forgotten(document, confidence)
    trained_on = conclusions.trained_on(verdict["contaminated_share"])
    return [*found, forgotten.text, trained_on.text]
