"""Tasks of lm-eval on the base and the final model, for those who have the extra and access to a hub.

A task brings data of its own from a hub, pinned by no lock file of ours.  So its numbers are told
beside the forgetting that is measured on the regression rows, and no gate depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.lineage.stage import StageError
from tasks.model.load import ADAPTER

BATCH = 8
Numbers = dict[str, dict[str, dict[str, float]]]
"""By task, metric and candidate."""


def run(models: Mapping[str, Path], names: Sequence[str], limit: int, seed: int) -> Numbers:
    """Measure models on tasks of lm-eval, as it comes: without a chat template, greedy.

    Args:
        models: folders in Hugging Face format, by candidate.
        names: of tasks or groups that lm-eval has, or paths of its task files (YAML).
        limit: rows of each task, the first ones.

    Raises:
        StageError: when lm-eval is not installed, a task is not known, or its data cannot be had.
    """
    if not names:
        return {}
    try:
        import lm_eval
        import torch
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise StageError(
            f"evaluate.lm_eval.tasks names {', '.join(names)}, but {error.name} is not installed; "
            "run pip install 'tunetrail[lm-eval]', or set evaluate.lm_eval.tasks to []"
        ) from None

    manager = TaskManager()
    asked = [_task(name, manager) for name in names]
    found: Numbers = {}
    for candidate, folder in models.items():
        try:
            results = lm_eval.simple_evaluate(
                model="hf",
                model_args={
                    "pretrained": str(folder),
                    **({"peft": str(folder / ADAPTER)} if (folder / ADAPTER).is_dir() else {}),
                    "dtype": "float32",
                    "trust_remote_code": False,
                },
                tasks=asked,
                limit=limit,
                batch_size=BATCH,
                device="cuda" if torch.cuda.is_available() else "cpu",
                task_manager=manager,
                bootstrap_iters=0,  # it would spend minutes on errors that are not told
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise StageError(
                f"lm-eval could not run {', '.join(names)} on {candidate}: "
                f"{type(error).__name__}: {first[:200]}; a task needs its data from a hub: check the "
                "network and HF_HUB_OFFLINE, or take it out of evaluate.lm_eval.tasks"
            ) from error
        for task, scores in results["results"].items():
            for metric, value in _numbers(scores):
                found.setdefault(task, {}).setdefault(metric, {})[candidate] = value
    return found


def _task(name: str, manager: Any) -> str | dict[str, Any]:
    """A task that lm-eval knows, or what a task file says."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise StageError(f"evaluate.lm_eval.tasks names {name}, which is no file")
        from ruamel.yaml import YAML

        settings = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or "task" not in settings:
            raise StageError(f"{name} is no task file of lm-eval: it has no key task")
        return settings
    if not manager.match_tasks([name]):
        raise StageError(
            f"evaluate.lm_eval.tasks names {name}, which lm-eval does not have; "
            "`lm_eval ls tasks` lists what it has"
        )
    return name


def _numbers(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What lm-eval says of a task, without standard errors and the names of filters that do
    nothing."""
    numbers = []
    for key, value in scores.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or isinstance(value, bool):
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            numbers.append(
                (metric if filtered == "none" else f"{metric} ({filtered})", round(float(value), 6))
            )
    return numbers
