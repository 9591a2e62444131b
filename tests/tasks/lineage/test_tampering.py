"""Whoever can write to MLflow's store, and has no trusted key, changes something: it is detected.

Each case takes a version that holds, damages one thing at random, and puts it back.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import evidence, hashes, signing, store, verify

pytest_plugins = ("work_trees",)

MODEL = "shipments-candidates"
SEED = 20261122


class Version:
    """A registered version, and every way in which it is tampered with."""

    def __init__(self) -> None:
        self.client = store.connect()
        self.random = random.Random(SEED)
        found = self.read()
        self.files = dict(found.files)
        self.tags = dict(found.tags)
        self.description = found.description
        self.run = found.run

    def read(self) -> evidence.Evidence:
        version = self.client.get_model_version(MODEL, "1")
        return evidence.collect(self.client, version, Path("unused"))

    def report(self) -> verify.Report:
        return verify.check(self.client, self.read(), Path())

    @contextmanager
    def restored(self, *paths: Path) -> Iterator[None]:
        kept = {path: path.read_bytes() if path.exists() else None for path in paths}
        try:
            yield
        finally:
            for path, content in kept.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(content)

    @contextmanager
    def flip(self, name: str) -> Iterator[None]:
        path = self.files[name]
        with self.restored(path):
            content = bytearray(path.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            path.write_bytes(content)
            yield

    @contextmanager
    def truncate(self, name: str) -> Iterator[None]:
        path = self.files[name]
        with self.restored(path):
            content = path.read_bytes()
            path.write_bytes(content[: self.random.randrange(len(content))])
            yield

    @contextmanager
    def zero_tail(self, name: str) -> Iterator[None]:
        path = self.files[name]
        with self.restored(path):
            content = path.read_bytes()
            kept = self.random.randrange(len(content) - 1)
            path.write_bytes(content[:kept] + bytes(len(content) - kept))
            yield

    @contextmanager
    def remove(self, name: str) -> Iterator[None]:
        path = self.files[name]
        with self.restored(path):
            path.unlink()
            yield

    @contextmanager
    def add(self, name: str) -> Iterator[None]:
        names = ["README.md", ".hidden", "evil.py", "x.pyc", ".gitignore", "model.safetensors.old"]
        path = self.files[name].with_name(self.random.choice(names))
        with self.restored(path):
            path.write_text("added")
            yield

    @contextmanager
    def swap(self, name: str) -> Iterator[None]:
        """Put another file of the version in its place, as one adapter for another."""
        path = self.files[name]
        others = [
            other
            for other in self.files.values()
            if other.suffix == path.suffix and other.read_bytes() != path.read_bytes()
        ] or [self.files["provenance.json"]]
        with self.restored(path):
            shutil.copyfile(self.random.choice(others), path)
            yield

    @contextmanager
    def edit(self, name: str) -> Iterator[None]:
        """Change one value of a document, and what names its hash."""
        path = self.files[name]
        with self.restored(path):
            document = json.loads(path.read_text())
            holder, key = self.random.choice(list(_leaves(document)))
            value = holder[key]
            holder[key] = value + 1 if type(value) in (int, float) else f"{value}x"
            path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
            tag = {"provenance.json": "identity"}.get(name, name.partition(".")[0])
            with self.tag(tag, hashes.file_hash(path, "sha256") if tag in self.tags else None):
                yield

    @contextmanager
    def tag(self, name: str, value: str | None) -> Iterator[None]:
        """Set a tag, or leave all as they are without a value."""
        if value is not None:
            self.client.set_model_version_tag(MODEL, "1", name, value)
        try:
            yield
        finally:
            if value is not None:
                self.client.set_model_version_tag(MODEL, "1", name, self.tags[name])

    @contextmanager
    def edit_tag(self, _: str) -> Iterator[None]:
        name = self.random.choice(sorted(self.tags))
        with self.tag(name, self.tags[name][:-1] + "~"):
            yield

    @contextmanager
    def remove_tag(self, _: str) -> Iterator[None]:
        name = self.random.choice(sorted(self.tags))
        self.client.delete_model_version_tag(MODEL, "1", name)
        try:
            yield
        finally:
            self.client.set_model_version_tag(MODEL, "1", name, self.tags[name])

    @contextmanager
    def edit_description(self, _: str) -> Iterator[None]:
        self.client.update_model_version(MODEL, "1", self.description.replace("0.9", "0.95"))
        try:
            yield
        finally:
            self.client.update_model_version(MODEL, "1", self.description)

    @contextmanager
    def edit_shown_metric(self, _: str) -> Iterator[None]:
        name, value = next(iter(self.run.data.metrics.items()))
        self.client.log_metric(self.run.info.run_id, name, value + 0.05)
        try:
            yield
        finally:
            self.client.log_metric(self.run.info.run_id, name, value)

    @contextmanager
    def sign_by_another(self, name: str) -> Iterator[None]:
        """Change a file, write its hash wherever it stands, and sign all with a key of one's own."""
        changed, statement = self.files[name], self.files[evidence.STATEMENT]
        signature = self.files[evidence.SIGNATURE]
        with self.restored(changed, statement, signature), pytest.MonkeyPatch.context() as patch:
            if changed not in (statement, signature):
                changed.write_bytes(changed.read_bytes() + b" ")
            digests = {key: hashes.file_hash(path, "sha256") for key, path in self.files.items()}
            said = json.loads(statement.read_text())
            for subject in said["subject"]:
                subject["digest"]["sha256"] = digests[subject["name"]]
            statement.write_text(json.dumps(said))
            digests[evidence.STATEMENT] = hashes.file_hash(statement, "sha256")
            del digests[evidence.SIGNATURE]
            patch.setenv("XDG_CONFIG_HOME", str(Path("attacker").resolve()))
            key = signing.signing_key()
            patch.undo()
            signature.write_text(signing.sign(digests, key))
            with (
                self.tag("statement", digests[evidence.STATEMENT]),
                self.tag("signature", hashes.file_hash(signature, "sha256")),
                self.tag("signer", signing.fingerprint(key)),
            ):
                yield


Damage = Callable[[Version, str], Any]
ON_FILES: list[Damage] = [
    Version.flip,
    Version.truncate,
    Version.zero_tail,
    Version.remove,
    Version.add,
    Version.swap,
    Version.sign_by_another,
]
ON_DOCUMENTS: dict[Damage, list[str]] = {
    Version.edit: [
        "provenance.json",
        "statement.json",
        "evaluate.metrics.json",
        "verdict.json",
        "contract.json",
        "bom.cdx.json",
        "signature.json",
    ],
    Version.swap: ["dpo/adapter_model.safetensors", "sft/adapter_model.safetensors"],
    Version.edit_tag: [""],
    Version.remove_tag: [""],
    Version.edit_description: [""],
    Version.edit_shown_metric: [""],
}


def cases(version: Version, count: int) -> Iterator[tuple[Damage, str]]:
    """Each kind of damage in turn, on another artifact each time, so that all artifacts have theirs."""
    names = sorted(version.files)
    version.random.shuffle(names)
    turns = [(damage, names) for damage in ON_FILES] + list(ON_DOCUMENTS.items())
    for number in range(count):
        damage, artifacts = turns[number % len(turns)]
        yield damage, artifacts[(number // len(turns) + number) % len(artifacts)]


def undetected(count: int) -> list[str]:
    version = Version()
    assert version.report().failed == []
    missed = []
    for number, (damage, name) in enumerate(cases(version, count)):
        with damage(version, name):
            if version.report().holds:
                missed.append(f"case {number}: {damage.__name__} {name}")
    assert version.report().failed == []  # each case was put back
    return missed


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a document that holds a text or a number, as container and key."""
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(entry, dict | list):
            yield from _leaves(entry)
        else:
            yield value, key


def test_twenty_random_cases_are_all_detected(light) -> None:
    light.register()
    assert undetected(20) == []


@pytest.mark.slow
def test_two_hundred_random_cases_are_all_detected(light) -> None:
    light.register()
    assert undetected(200) == []
