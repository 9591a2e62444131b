"""Commands in the documents exist, values are ones that params.yaml can have, links lead somewhere."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.params import load

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent

FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
VALUES = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:tunetrail|dvc|make|python -m|mlflow) [^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def commands() -> list[str]:
    found = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found |= {line for block in FENCE.findall(text) for line in block.splitlines() if line}
        found |= set(INLINE.findall(text))
    return sorted(found)


@functools.cache
def answer(*probe: str) -> subprocess.CompletedProcess[str]:
    """What a program says; documents name most of them several times."""
    return subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)


def exists(command: str) -> tuple[bool, str]:
    """Whether a documented command line is one that its program accepts, without running it."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        probe = ["make", "--dry-run", *words[1:]]
    elif words[0] == "git":
        return words[1] in ("clone", "diff", "show", "checkout", "add", "commit", "merge"), "git"
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "data/")):
        probe = [sys.executable, words[1], "--help"]
    elif words[:2] == ["python", "-m"]:
        probe = [sys.executable, *words[1:3], "--help"]
    elif words[0] in ("tunetrail", "dvc", "mlflow"):
        depth = 3 if words[1] in ("metrics", "plots", "remote", "models") else 2
        depth = 4 if words[1:3] == ["server", "user"] else depth
        probe = [str(BIN / words[0]), *words[1:depth], "--help"]
        if words[:2] == ["mlflow", "ui"]:
            probe = [str(BIN / "mlflow"), "ui", "--help"]
    elif words[0] in (".", "cd", "pip", "kill", "rm"):
        return True, "shell"
    else:
        return False, f"unknown program {words[0]}"
    done = answer(*probe)
    unknown = []
    if words[0] in ("tunetrail", "python"):
        unknown = [word for word in words if word[:2] == "--" and word not in done.stdout]
    said = done.stdout[-300:] + done.stderr[-300:]
    return done.returncode == 0 and not unknown, " ".join([*unknown, said])


@pytest.mark.parametrize("command", commands())
def test_documented_command_exists(command: str) -> None:
    ok, said = exists(command)
    assert ok, f"{command}: {said}"


def test_an_unknown_command_is_caught() -> None:
    assert not exists("tunetrail nonsense")[0]
    assert not exists("make nonsense")[0]
    assert not exists("tunetrail rejects --nonsense")[0]


def examples() -> list[Any]:
    """The values that documents say to write into params.yaml."""
    return [
        pytest.param(block, id=f"{document.stem}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(VALUES.findall(document.read_text(encoding="utf-8")))
    ]


WHOLE = {"map", "metrics", "weights", "answer_schema", "by_source"}
"""Keys of values that are given as a whole, not key by key."""


def overlay(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict) and key not in WHOLE:
            overlay(values[key], change)
        else:
            assert key in values, f"{key} is no key of params.yaml"
            values[key] = change


@pytest.mark.parametrize("block", examples())
def test_documented_values_are_accepted(block: str, tmp_path: Path) -> None:
    """An example, written over the shipped values, is a params.yaml without fault."""
    yaml = YAML(typ="safe")
    values = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    overlay(values, yaml.load(block))
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    load(tmp_path / "params.yaml")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_tree_of_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("## Where things are\n\n```\n")[2].partition("```")[0]
    names = re.findall(r"^([\w./]+)\s", tree, re.MULTILINE)
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists() or name == "models/", name
