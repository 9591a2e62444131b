"""What adding a stage asks for: the wiring in dvc.yaml says what the code does, and forgets nothing.

DVC runs a stage again when something that it declares has changed, and restores its outputs
otherwise.  So a file that a stage depends on and does not declare gives stale outputs, silently.
`problems` finds such files; the tests below hold it against the real dvc.yaml, and then against
one in which each declaration in turn is missing.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.lineage.stage import Out, sections_read
from tasks.params import Compute, Params

# What a stage imports and yet need not declare, since no edit of it changes what the stage writes.
MACHINERY = {
    "tasks/params.py": "the values that it hands on are declared as params",
    "tasks/lineage/stage.py": "calls the stage; its own files are the records, which say what ran",
    "tasks/lineage/console.py": "what a person sees",
    "tasks/lineage/chosen.py": "hands on what the record keeps",
    "tasks/lineage/tracking.py": "what MLflow is told",
    "tasks/lineage/unfinished.py": "where an interrupted stage finds what it kept",
    "tasks/lineage/courier.py": "carries that to MLflow",
    "tasks/lineage/store.py": "finds MLflow",
    "tasks/lineage/git.py": "asks for the commit, for MLflow alone",
    "tasks/lineage/process.py": "locks and signals",
    "tasks/lineage/champion.py": "brings a model whose every hash is pinned in params.yaml",
    "tasks/lineage/whole.py": "puts what a stage wrote in place",
}
LOCK = "requirements.lock"


def problems(dag: dict[str, Any], root: Path) -> list[str]:
    """Everything that a dvc.yaml, read as a mapping, forgets or gets wrong; signatures are those of
    the modules that Python imports, sources are read below `root`."""
    return [
        f"{name}: {problem}"
        for name, stage in dag["stages"].items()
        for check in (_names, _call, _params, _code, _record, _meta)
        for problem in check(name, stage, dag, root)
    ]


def _names(name: str, stage: dict[str, Any], dag: dict[str, Any], root: Path) -> Iterator[str]:
    if not hasattr(_module(name, root), "run"):
        yield f"tasks/{name}.py with a function `run` is missing"
    if name not in _sections():
        yield f"class and field `{name}` of tasks/params.py are missing"
    if name not in _in_params_yaml(root):
        yield f"section `{name}` of params.yaml is missing"
    if not (root / f"tests/tasks/test_{name}.py").is_file():
        yield f"tests/tasks/test_{name}.py is missing"


def _call(name: str, stage: dict[str, Any], dag: dict[str, Any], root: Path) -> Iterator[str]:
    """The command's options against the signature, and their values against deps and outs."""
    words = shlex.split(stage["cmd"])
    if words[:3] != ["python", "-m", f"tasks.{name}"]:
        yield f"cmd does not begin with `python -m tasks.{name}`"
    given = dict(zip(words[3::2], words[4::2], strict=False))
    wanted = {f"--{key.replace('_', '-')}": hint for key, hint in _paths(name, root).items()}
    if not _module(name, root):
        return
    if len(words) % 2 == 0:
        yield "cmd has an option without a value"
    yield from (
        f"cmd lacks {option}, which `run` takes" for option in wanted if option not in given
    )
    yield from (f"cmd has {option}, which `run` lacks" for option in given if option not in wanted)

    deps, outs = _entries(stage, "deps"), _written(stage)
    for option, path in given.items():
        if wanted.get(option) == Out and path not in outs:
            yield f"{option} {path} is not in outs"
        if wanted.get(option) is Path:
            yield from (f"{need} is not in deps" for need in _read(name, path, deps, dag))
    runner = (f"models/records/{name}.json", f"models/{name}.metrics.json")
    for out in outs:
        if out not in given.values() and out not in runner:
            yield f"{out} is in outs, and no option of cmd names it"


def _read(name: str, path: str, deps: list[str], dag: dict[str, Any]) -> list[str]:
    """What is missing in deps for an input path: itself, or what other stages write below it."""
    if _covered(path, deps):
        return []
    below = [
        out
        for other, stage in dag["stages"].items()
        for out in _written(stage)
        if other != name and PurePosixPath(path) in PurePosixPath(out).parents
    ]
    return [out for out in below if not _covered(out, deps)] if below else [path]


def _params(name: str, stage: dict[str, Any], dag: dict[str, Any], root: Path) -> Iterator[str]:
    module = _module(name, root)
    if not module:
        return
    names = {section: key for key, section in _sections().items()}
    read = {names[section] for section in sections_read(module.run)}
    declared = set(stage.get("params", []))
    yield from (f"section {key} is read and not in params" for key in sorted(read - declared))
    yield from (f"section {key} is in params and not read" for key in sorted(declared - read))


def _code(name: str, stage: dict[str, Any], dag: dict[str, Any], root: Path) -> Iterator[str]:
    """Every module that the stage imports, however deep, against deps."""
    deps = _entries(stage, "deps")
    modules, packages = imported(f"tasks/{name}.py", root)
    module = _module(name, root)
    if module and Compute in sections_read(module.run):
        # The runner sets its environment.
        modules |= {"tasks/lineage/compute.py", "tasks/lineage/products.py"}
    for file in sorted(modules):
        if PurePosixPath(file).parent == PurePosixPath("tasks") and file != f"tasks/{name}.py":
            yield f"{file} is another stage; stages never import stages"
        elif not _covered(file, deps):
            yield f"{file} is imported and not in deps"
    if packages and LOCK not in deps:
        yield f"{LOCK} is not in deps, though {', '.join(sorted(packages))} are imported"


def _record(name: str, stage: dict[str, Any], dag: dict[str, Any], root: Path) -> Iterator[str]:
    record = f"models/records/{name}.json"
    if name != "register" and record not in _entries(stage, "outs"):  # which reads the records
        yield f"{record} is not in outs"


def _meta(name: str, stage: dict[str, Any], dag: dict[str, Any], root: Path) -> Iterator[str]:
    retries = stage.get("meta", {}).get("retries", 0)
    if type(retries) is not int or retries < 0:
        yield f"meta.retries is {retries!r}, must be a whole number"


def _module(name: str, root: Path) -> Any:
    return (
        importlib.import_module(f"tasks.{name}") if (root / f"tasks/{name}.py").is_file() else None
    )


def _sections() -> dict[str, Any]:
    return {info.alias or key: info.annotation for key, info in Params.model_fields.items()}


@functools.cache
def _in_params_yaml(root: Path) -> frozenset[str]:
    return frozenset(YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8")))


def _paths(name: str, root: Path) -> dict[str, Any]:
    """The parameters of `run` that are paths, with their roles."""
    module = _module(name, root)
    if not module:
        return {}
    hints = typing.get_type_hints(module.run, include_extras=True)
    parameters = inspect.signature(module.run).parameters
    return {
        key: hints[key]
        for key in parameters
        if hints[key] is Path or getattr(hints[key], "__origin__", None) is Path
    }


def _entries(stage: dict[str, Any], key: str) -> list[str]:
    """Paths of a list of dvc.yaml, whose items are paths or mappings of a path to its options."""
    return [next(iter(item)) if isinstance(item, dict) else item for item in stage.get(key, [])]


def _written(stage: dict[str, Any]) -> list[str]:
    return _entries(stage, "outs") + _entries(stage, "metrics")


def _covered(path: str, deps: list[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(dep) for dep in deps)


@functools.cache
def imported(start: str, root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What a module imports, at its top or inside functions, however deep.

    Returns:
        the project's own files, `start` included, MACHINERY and what it imports left out; and the
        top-level names of packages that are not Python's own.
    """
    files: set[str] = set()
    packages: set[str] = set()
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file in files or file in MACHINERY or not (root / file).is_file():
            continue
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        if _does_something(tree):
            files.add(file)
        for name in _imports(tree):
            if name.split(".")[0] == "tasks":
                waiting += _files(name, root)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                packages.add(name.split(".")[0])
    return frozenset(files), frozenset(packages)


def _does_something(tree: ast.Module) -> bool:
    """False for a file that is empty or a docstring."""
    return any(not isinstance(node, ast.Expr) for node in tree.body)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported when the code runs, so none for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imports(node)


def _files(name: str, root: Path) -> list[str]:
    """The files that importing `tasks.a.b` runs; `b` may also be a name within `a`."""
    found = []
    parts = name.split(".")
    for length in range(2, len(parts) + 1):
        place = "/".join(parts[:length])
        found += [
            file for file in (f"{place}.py", f"{place}/__init__.py") if (root / file).is_file()
        ]
    return found


@pytest.fixture(scope="session")
def real(root: Path) -> dict[str, Any]:
    """dvc.yaml as it is."""
    dag: dict[str, Any] = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))
    return dag


@pytest.fixture
def dag(real: dict[str, Any]) -> dict[str, Any]:
    """A copy of dvc.yaml to break."""
    return copy.deepcopy(real)


def new_problems(dag: dict[str, Any], real: dict[str, Any], root: Path) -> list[str]:
    known = problems(real, root)
    return [problem for problem in problems(dag, root) if problem not in known]


def test_dvc_yaml_forgets_nothing(real: dict[str, Any], root: Path) -> None:
    assert problems(real, root) == []


def test_machinery_exists(root: Path) -> None:
    assert [file for file in MACHINERY if not (root / file).is_file()] == []


def test_each_missing_dep_is_found(real: dict[str, Any], root: Path) -> None:
    unnoticed = []
    for name, stage in real["stages"].items():
        for index, dep in enumerate(stage["deps"]):
            broken = copy.deepcopy(real)
            del broken["stages"][name]["deps"][index]
            if not any(told.startswith(f"{name}: {dep}") for told in problems(broken, root)):
                unnoticed.append(f"{name}: {dep}")
    assert unnoticed == []


def test_each_missing_section_is_found(real: dict[str, Any], root: Path) -> None:
    for name, stage in real["stages"].items():
        for section in stage["params"]:
            broken = copy.deepcopy(real)
            broken["stages"][name]["params"].remove(section)
            assert new_problems(broken, real, root) == [
                f"{name}: section {section} is read and not in params"
            ]


def test_each_missing_out_is_found(real: dict[str, Any], root: Path) -> None:
    for name, stage in real["stages"].items():
        for key in ("outs", "metrics"):
            for index, out in enumerate(_entries(stage, key)):
                if out == f"models/{name}.metrics.json":
                    continue  # a stage is free to report nothing
                broken = copy.deepcopy(real)
                del broken["stages"][name][key][index]
                (problem,) = new_problems(broken, real, root)
                assert re.fullmatch(rf"{name}: (--\w+ )?{re.escape(out)} is not in outs", problem)


def test_a_renamed_stage_is_found(dag: dict[str, Any], real: dict[str, Any], root: Path) -> None:
    dag["stages"]["tune"] = dag["stages"].pop("sft")
    found = new_problems(dag, real, root)
    assert "tune: tasks/tune.py with a function `run` is missing" in found
    assert "tune: class and field `tune` of tasks/params.py are missing" in found
    assert "tune: section `tune` of params.yaml is missing" in found
    assert "tune: tests/tasks/test_tune.py is missing" in found
    assert "tune: cmd does not begin with `python -m tasks.tune`" in found
    assert "tune: models/records/tune.json is not in outs" in found


def test_a_command_that_does_not_fit_the_signature_is_found(
    dag: dict[str, Any], real: dict[str, Any], root: Path
) -> None:
    dag["stages"]["sft"]["cmd"] = dag["stages"]["sft"]["cmd"].replace("--base ", "--model ")
    assert new_problems(dag, real, root) == [
        "sft: cmd lacks --base, which `run` takes",
        "sft: cmd has --model, which `run` lacks",
    ]


def test_a_path_that_is_changed_in_one_place_is_found(
    dag: dict[str, Any], real: dict[str, Any], root: Path
) -> None:
    command = dag["stages"]["sft"]["cmd"]
    dag["stages"]["sft"]["cmd"] = command.replace("models/cpt", "models/new").replace(
        "--out models/sft", "--out models/tuned"
    )
    assert new_problems(dag, real, root) == [
        "sft: models/new is not in deps",
        "sft: --out models/tuned is not in outs",
        "sft: models/sft is in outs, and no option of cmd names it",
    ]


def test_a_section_too_many_is_found(dag: dict[str, Any], real: dict[str, Any], root: Path) -> None:
    dag["stages"]["ingest"]["params"].append("sft")
    assert new_problems(dag, real, root) == ["ingest: section sft is in params and not read"]


@pytest.mark.parametrize("retries", ["1", 1.0, True, -1])
def test_retries_that_are_no_number_are_found(
    retries: object, dag: dict[str, Any], real: dict[str, Any], root: Path
) -> None:
    dag["stages"]["sft"]["meta"] = {"retries": retries}
    assert new_problems(dag, real, root) == [
        f"sft: meta.retries is {retries!r}, must be a whole number"
    ]


@pytest.fixture
def edited(root: Path, tmp_path: Path) -> Path:
    """A copy of the code to break; signatures stay those of the real one."""
    shutil.copytree(
        root / "tasks", tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(root / "tests/tasks", tmp_path / "tests/tasks")
    shutil.copyfile(root / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def append(file: Path, code: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + code, encoding="utf-8")


def test_an_import_deep_inside_a_function_is_found(
    edited: Path, real: dict[str, Any], root: Path
) -> None:
    (edited / "tasks/words").mkdir()
    (edited / "tasks/words/__init__.py").write_text('"""Words."""\n')
    (edited / "tasks/words/stems.py").write_text("import numpy\n")
    code = "\n\ndef stems():\n    if words:\n        from tasks.words.stems import stem\n"
    append(edited / "tasks/dataset/strict_json.py", code)
    found = set(problems(real, edited)) - set(problems(real, root))
    assert "ingest: tasks/words/stems.py is imported and not in deps" in found
    assert "validate: tasks/words/stems.py is imported and not in deps" in found
    assert not [told for told in found if told.startswith("base:")]


def test_a_stage_that_imports_a_stage_is_found(
    edited: Path, real: dict[str, Any], root: Path
) -> None:
    append(edited / "tasks/dpo.py", "\n\ndef again():\n    from tasks import sft\n")
    found = set(problems(real, edited)) - set(problems(real, root))
    assert found == {"dpo: tasks/sft.py is another stage; stages never import stages"}


def test_an_import_for_type_checkers_alone_is_none(
    edited: Path, real: dict[str, Any], root: Path
) -> None:
    append(edited / "tasks/ingest.py", "\nif TYPE_CHECKING:\n    from tasks.model import load\n")
    assert problems(real, edited) == problems(real, root)
