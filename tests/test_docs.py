"""Commands in the documents exist, links lead somewhere, and log lines name what they measure."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent

FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:tunetrail|dvc|make|python -m|mlflow) [^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def commands() -> list[str]:
    found = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found |= {line for block in FENCE.findall(text) for line in block.splitlines() if line}
        found |= set(INLINE.findall(text))
    return sorted(found)


def exists(command: str) -> tuple[bool, str]:
    """Whether a documented command line is one that its program accepts, without running it."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        probe = ["make", "--dry-run", *words[1:]]
    elif words[0] == "git":
        return words[1] in ("clone", "diff", "show", "checkout", "add", "commit"), "git"
    elif words[:2] == ["python", "-m"]:
        probe = [sys.executable, *words[1:3], "--help"]
    elif words[0] in ("tunetrail", "dvc", "mlflow"):
        depth = 3 if words[1] in ("metrics", "plots", "remote", "models") else 2
        probe = [str(BIN / words[0]), *words[1:depth], "--help"]
        if words[:2] == ["mlflow", "ui"]:
            probe = [str(BIN / "mlflow"), "ui", "--help"]
    elif words[0] in (".", "cd", "pip", "kill", "rm"):
        return True, "shell"
    else:
        return False, f"unknown program {words[0]}"
    done = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0, done.stdout[-300:] + done.stderr[-300:]


@pytest.mark.parametrize("command", commands())
def test_documented_command_exists(command: str) -> None:
    ok, said = exists(command)
    assert ok, f"{command}: {said}"


def test_an_unknown_command_is_caught() -> None:
    assert not exists("tunetrail nonsense")[0]
    assert not exists("make nonsense")[0]


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
