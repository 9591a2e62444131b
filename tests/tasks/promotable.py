"""Candidates in an MLflow registry of their own, reproduced, with an author and a reviewer.

A plugin, for the tests of promotion; it needs `work_trees`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import attached, audit, evidence, promotion, review, seal, signing, store
from tasks.lineage.promotion import Promotion
from tasks.params import Promote

NAME = "shipments"
CANDIDATES = "shipments-candidates"
AUTHOR, REVIEWER = "ada@example.com", "Grace <grace@example.com>"
ASKED = Promote(
    reproduced="identical",
    votes=0,
    min_win_rate=None,
    judge_min_win_rate=None,
    max_latency_p95_seconds=None,
)


class Team:
    """An author who registers candidates, and a reviewer at another machine. Time stands still until
    `pass_time` is called."""

    def __init__(self, pipeline: Any, patch: pytest.MonkeyPatch) -> None:
        self.pipeline = pipeline
        self.patch = patch
        self.client = store.connect()
        self.seconds = 0
        patch.setattr(audit, "now", self.now)
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", "user.email")
        patch.setenv("GIT_CONFIG_VALUE_0", AUTHOR)
        Path("trusted_keys").mkdir()
        for who in ("reviewer", "author"):
            self.work_as(who)
            public = signing.public_half(signing.signing_key())
            shutil.copyfile(public, f"trusted_keys/{who}.pem")

    def work_as(self, who: str) -> None:
        self.patch.setenv("XDG_CONFIG_HOME", str(Path(who).absolute()))

    def now(self) -> str:
        return f"2026-11-22T10:{self.seconds // 60:02d}:{self.seconds % 60:02d}Z"

    def pass_time(self) -> None:
        self.seconds += 1

    def candidate(self) -> str:
        """Train, register and reproduce another candidate. Returns NAME@VERSION."""
        self.work_as("author")
        self.pass_time()
        Path("models/sft/adapter_model.safetensors").write_text(f"adapter {self.seconds}")
        self.pipeline.record()
        self.pipeline.register()
        number = self.client.get_model_version_by_alias(CANDIDATES, "challenger").version
        reference = f"{CANDIDATES}@{number}"
        self.reproduce(reference)
        self.work_as("reviewer")
        return reference

    def answer(self, reference: str, **other: Any) -> dict[str, Any]:
        """As `tunetrail reproduce` notes it."""
        version = self.version(reference)
        return {
            "answer": "identical",
            "at": self.now(),
            "by": AUTHOR,
            "identity": version.tags["identity"],
            **other,
        }

    def reproduce(self, reference: str, **other: Any) -> None:
        self.pass_time()
        answer = self.answer(reference, **other)
        self.keep(reference, seal.sealed(review.PURPOSE, answer, signing.signing_key()))

    def keep(self, reference: str, answer: dict[str, Any]) -> None:
        version = self.version(reference)
        folder, kind = evidence.REPRODUCTIONS, review.PURPOSE
        attached.add(self.client, version.run_id, folder, kind, answer)

    def promote(self, reference: str, **other: Any) -> Promotion:
        self.pass_time()
        given = {"reviewer": REVIEWER, "comment": "", "settings": ASKED, **other}
        return promotion.promote(reference, **given)

    def rollback(self, to: int | None = None, comment: str = "it misroutes") -> Promotion:
        self.pass_time()
        return promotion.rollback(NAME, to, REVIEWER, comment)

    def version(self, reference: str) -> Any:
        name, _, number = reference.partition("@")
        return self.client.get_model_version(name, number)

    def aliases(self) -> dict[str, int]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: int(version) for alias, version in found.items()}

    def record(self) -> audit.Record:
        return audit.read(self.client, NAME, Path())

    def judgement(self) -> list[str]:
        """Why the champion would not be loaded, as `tunetrail doctor` tells it."""
        return [f"{it.what}: {it.why}; {it.remedy}" for it in promotion.problems(self.client)]


@pytest.fixture
def team(light: Any, monkeypatch: pytest.MonkeyPatch) -> Team:
    return Team(light, monkeypatch)


@pytest.fixture
def serving_team(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Team:
    """The same with a model that answers."""
    return Team(pipeline, monkeypatch)
