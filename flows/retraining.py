"""Retraining on what arrived, from a drift check to a candidate that waits for reviewers.

What arrived becomes a new data version on a branch of its own, the stages run in a work tree of their
own, and `register` makes a candidate, whatever its verdict.  Nothing is promoted, merged or removed.
Started again after a kill, it goes on in the same tree.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows import drift_checks, events, pipeline, results, retraining_policy, retraining_tree
from flows.drift_checks import Check
from flows.dvc_dag import StageFailed
from flows.results import Results
from flows.retraining_policy import Busy, Entry, Journal
from flows.retraining_tree import Changed, Tree
from tasks.evaluation import conclusions
from tasks.lineage import courier, evidence, git, provenance, store, submission
from tasks.lineage.stage import FAULT, GATE, MISUSE, StageError
from tasks.params import Params, load

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Outcome = Literal["candidate", "failed", "skipped"]

_PROVENANCE = Path("models/provenance.json")
_REGISTER = "register"
_TAG_CHARS = 500
"""Of a reason in a tag; MLflow takes some thousand."""


@dataclass
class Retraining:
    """What came of it."""

    check: str
    outcome: Outcome
    why: str
    """Why it was made, skipped, or failed."""
    exit_code: int
    candidate: str | None = None
    """NAME@VERSION."""
    verdict: str | None = None
    """pass or fail; None where the stages write none."""
    gates: list[str] = field(default_factory=list)
    against_champion: str | None = None
    """How it stands against the champion, on the old test and on what arrived."""
    branch: str | None = None
    share: float | None = None
    champion: str | None = None
    warnings: list[str] = field(default_factory=list)

    def headline(self) -> str:
        """What came of it, in a line."""
        if self.outcome == "skipped":
            return f"no retraining for check {self.check}: {self.why}"
        if self.outcome == "failed":
            return f"the retraining for check {self.check} failed: {self.why}"
        says = {"pass": "passed its gates", "fail": "did NOT pass its gates"}
        verdict = says.get(self.verdict or "", "has no verdict")
        return f"{self.candidate} {verdict} and waits for a reviewer; nothing was promoted"

    def lines(self) -> list[str]:
        """All of it, for a console."""
        return [
            *self.warnings,
            self.headline(),
            *(f"  {gate}" for gate in self.gates),
            *([self.against_champion] if self.against_champion else []),
            *(f"Next: {step}" for step in self.steps()[:1]),
        ]

    def steps(self) -> list[str]:
        """What a reviewer does next."""
        if self.outcome == "failed":
            return [f"mend that, commit, and run `tunetrail retrain --now {self.check}`"]
        if self.candidate is None or self.branch is None:
            return []
        return [
            f"`tunetrail reproduce {self.candidate}` builds it anew and compares",
            f"`git diff HEAD...{self.branch}` shows what the retraining changed",
            f"`tunetrail promote {self.candidate}` shows all its evidence, then asks",
            f"once it is promoted, `git merge {self.branch}` and `dvc checkout` make the new data part "
            "of the project",
        ]

    def markdown(self) -> str:
        """The same for Prefect's page of the run."""
        lines = [f"## {self.headline()}", ""]
        if self.outcome == "candidate":
            assert self.share is not None
            lines += [
                f"Why: {self.why}",
                "",
                f"New rows: {self.share:.1%} of all. Compared with {self.champion}.",
                "",
                *(f"- {gate}" for gate in self.gates),
                "",
                self.against_champion or "It was not compared with the champion.",
                "",
            ]
        lines += [f"- {warning}" for warning in self.warnings]
        if steps := self.steps():
            lines += ["", "What to do next:", "", *(f"1. {step}" for step in steps)]
        return "\n".join(lines) + "\n"


def retrain(
    check: str, now: bool, clock: Callable[[], datetime] = retraining_policy.clock
) -> Retraining:
    """Retrain on what a drift check found, if the policy lets it.

    Args:
        now: pass over cooldown and budget, and over that the check found no drift.

    Raises:
        StageError: when the check is no check, or a fault of the machine ended it; started again it
            goes on.
        store.Unreachable: when MLflow does not answer, likewise.
    """
    found = drift_checks.read(check)
    params = load(Path("params.yaml"))
    try:
        with retraining_policy.alone():
            return _retrain(found, params, now, clock)
    except Busy:
        return _skipped(found, params, f"another is at work ({_at_work()})")


def _at_work() -> str:
    begun = [entry for entry in Journal().entries if entry.event == "begun"]
    return f"check {begun[-1].check}" if begun else "it is just beginning"


def _retrain(check: Check, params: Params, now: bool, clock: Callable[[], datetime]) -> Retraining:
    journal = Journal()
    for line in journal.settle(clock()):
        pipeline.say("retrain", line)
    begun = journal.unfinished(check.data)
    changed = git.changed([*submission.written(), str(retraining_tree.INCOMING)])
    if begun is None:
        reason = _objection(check, params, journal, now, clock())
        reason = reason or retraining_tree.changed(check)
        if reason is None and changed and params.register_.require_clean:
            reason = f"register.require_clean, and not committed: {', '.join(changed[:5])}"
        if reason is not None:
            again = journal.was_skipped(check.name, reason)
            if not again:
                journal.add(Entry("skipped", clock(), check.name, check.data, why=reason))
            return _skipped(check, params, reason, again)
        if changed:
            named = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
            pipeline.say("retrain", f"made of the last commit, without what is not in it: {named}")
        retraining_tree.tidy(keep=[check.data, *journal.open()])
        journal.add(Entry("begun", clock(), check.name, check.data, why=check.reason))
    else:
        pipeline.say(
            "retrain", f"goes on with check {begun.check}, begun {begun.at:%Y-%m-%d %H:%M}"
        )
    return _carry_out(check, params, journal, clock, go_on=begun is not None)


def _objection(
    check: Check, params: Params, journal: Journal, now: bool, at: datetime
) -> str | None:
    """Why this retraining may not begin."""
    if made := journal.candidate(check.data) or _candidate_of(check, params):
        return f"the same data has led to {made} already"
    if now:
        return None
    if not check.fired:
        return "the check found no drift; --now retrains all the same"
    return retraining_policy.objection(journal.entries, params.retraining, at)


def _candidate_of(check: Check, params: Params) -> str | None:
    """The candidate that the data has led to, as MLflow remembers it when the journal is gone."""
    client = store.connect()
    versions = client.search_model_versions(
        f"name = '{params.register_.name}-candidates' and tags.`retraining.data` = '{check.data}'"
    )
    return f"{versions[0].name}@{versions[0].version}" if versions else None


def _skipped(check: Check, params: Params, reason: str, again: bool = False) -> Retraining:
    payload = {"check": check.name, "reason": reason}
    events.tell(events.RETRAINING_SKIPPED, params.register_.name, payload, again)
    return Retraining(check.name, "skipped", reason, GATE)


def _carry_out(
    check: Check, params: Params, journal: Journal, clock: Callable[[], datetime], go_on: bool
) -> Retraining:
    def note(event: retraining_policy.Event, **about: str) -> None:
        journal.add(Entry(event, clock(), check.name, check.data, **about))

    try:
        done = _make(check, params, go_on)
    except Changed as error:
        note("ended", why=str(error))
        return _skipped(check, params, f"{error}; the next check sees what is there now")
    except StageFailed as error:
        if error.exit_code not in (GATE, MISUSE):
            note("stopped", why=str(error))
            raise _fault(str(error), check) from None
        done = Retraining(check.name, "failed", str(error), error.exit_code)
    except StageError as error:
        if error.exit_code not in (GATE, MISUSE):
            note("stopped", why=str(error))
            raise
        done = Retraining(check.name, "failed", str(error), error.exit_code)
    except store.Unreachable as error:
        note("stopped", why=str(error))
        raise
    if done.outcome == "failed":
        failed = {"check": check.name, "reason": done.why}
        events.tell(events.RETRAINING_FAILED, params.register_.name, failed)
        note("ended", why=done.why)
        return done
    waits = {"candidate": done.candidate, "verdict": done.verdict, "reason": done.why}
    events.tell(events.CANDIDATE_WAITS, params.register_.name, {"check": check.name, **waits})
    note("ended", candidate=str(done.candidate), why=done.headline())
    return done


def _fault(text: str, check: Check) -> StageError:
    error = StageError(f"{text}\n`tunetrail retrain {check.name}` goes on from there.")
    error.exit_code = FAULT
    return error


def _make(check: Check, params: Params, go_on: bool) -> Retraining:
    """The candidate, with all that belongs to it. Each step does nothing where it is done already."""
    client = store.connect()
    courier.experiment(client, params.register_.name)  # whose artifacts then lie with the project's
    address = store.address()
    tree = retraining_tree.prepare(check, params.retraining.test_share, go_on)
    pipeline.say("retrain", f"commit {tree.commit[:12]}, {tree.share:.1%} new rows, in {tree.top}")
    with _within(tree, address):
        pipeline.run(None, force=False)
        version = _version(client, params)
        if version is None:  # MLflow was out of reach then
            pipeline.run(_REGISTER, force=True)
            version = _version(client, params)
        found = _results()
    if version is None:
        raise store.Unreachable("MLflow has no version of what the stages made")
    candidate = f"{version.name}@{version.version}"
    _describe(client, version, check, tree.share)
    retraining_tree.keep_results(tree, f"What the retraining made: {candidate}")
    warnings = [line for line in [retraining_tree.push_data(tree)] if line]
    return Retraining(
        check=check.name,
        outcome="candidate",
        why=check.reason,
        exit_code=0,
        candidate=candidate,
        verdict=found.verdict["verdict"] if found else None,
        gates=found.gates() if found else [],
        against_champion=_against_champion(found) if found else None,
        branch=tree.branch,
        share=tree.share,
        champion=check.champion,
        warnings=warnings,
    )


@contextlib.contextmanager
def _within(tree: Tree, address: str) -> Iterator[None]:
    """Work in the tree, with the MLflow of the project."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        with contextlib.chdir(tree.root):
            yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _version(client: MlflowClient, params: Params) -> ModelVersion | None:
    """The version of what lies here, by its identity."""
    identity = provenance.identity(_PROVENANCE)
    name = f"{params.register_.name}-candidates"
    found = client.search_model_versions(f"name = '{name}' and tags.identity = '{identity}'")
    return min(found, key=lambda version: int(version.version)) if found else None


def _results() -> Results | None:
    """Of what lies here; None where the project has no stage that writes them."""
    try:
        return results.read()
    except results.NoResults:
        return None


def _against_champion(found: Results) -> str:
    answer = conclusions.against_champion(found.document, found.verdict["gates"], found.confidence)
    return f"{answer.question} {answer.short}. {answer.text}"


def _describe(client: MlflowClient, version: ModelVersion, check: Check, share: float) -> None:
    """Why the version was made, on the version and in its run."""
    tags = {
        "retraining.reason": check.reason[:_TAG_CHARS],
        "retraining.check": check.name,
        "retraining.data": check.data,
        "retraining.share": f"{share:.6f}",
        "retraining.champion": f"{check.champion} {check.identity}",
    }
    for file in (drift_checks.DOCUMENT, drift_checks.REPORT):
        if (check.folder / file).is_file():
            client.log_artifact(version.run_id, str(check.folder / file), evidence.DRIFT)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
