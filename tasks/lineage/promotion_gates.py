"""What a promotion asks in numbers: people's votes, the judge's, and how fast the model answers.

A pure function of what is known of the version and of the section `promote` of params.yaml.  Like
the gates of the verdict: a number that is missing fails its gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from tasks.params import Promote
from tasks.voting.counting import Tally


class Gate(TypedDict):
    gate: Literal["votes", "judge", "latency"]
    metric: str
    value: float | None
    low: float | None
    """The lower end of the interval, which is what win rates are held against."""
    limit: float
    passed: bool
    why: str
    remedy: str


@dataclass(frozen=True)
class Facts:
    """What is known of a version."""

    reference: str
    against: str | None
    """The candidate that answers are compared with; None when the version does not say."""
    tally: Tally
    """Of people's votes against it."""
    judgement: Mapping[str, Any] | None
    """The newest of `tunetrail judge`, sealed by a trusted key."""
    rubric_sha256: str | None
    """Of the version's own rubric."""
    latency: float | None
    """Seconds within which 95% of its answers came, as the run of evaluate has it."""


def judge(facts: Facts, settings: Promote) -> list[Gate]:
    """Every gate that `settings` asks for."""
    return [
        *_votes(facts, settings),
        *_win_rate(facts, settings),
        *_judged(facts, settings),
        *_latency(facts, settings),
    ]


def _votes(facts: Facts, settings: Promote) -> Iterator[Gate]:
    if settings.votes:
        count, limit = facts.tally.votes, settings.votes
        yield {
            "gate": "votes",
            "metric": "count",
            "value": count,
            "low": None,
            "limit": limit,
            "passed": count >= limit,
            "why": f"{count} votes of people {_against(facts)} "
            + ("are enough" if count >= limit else f"are fewer than {limit}"),
            "remedy": _review(facts),
        }


def _win_rate(facts: Facts, settings: Promote) -> Iterator[Gate]:
    if settings.min_win_rate is not None:
        why = None if facts.tally.votes else f"nobody has voted {_against(facts)}"
        rate = facts.tally.win_rate
        yield _rate("votes", rate, settings.min_win_rate, why, facts, _review(facts))


def _judged(facts: Facts, settings: Promote) -> Iterator[Gate]:
    if settings.judge_min_win_rate is None:
        return
    said = facts.judgement
    rate: Mapping[str, float | None] = {"value": None, "low": None}
    remedy = f"`tunetrail judge {facts.reference}`"
    why = None
    if said is None:
        why = "not judged: nobody has asked a judge"
    elif said["answer"] != "judged":
        why = f"not judged: {said['why']}"
    elif said["against"] != facts.against or said["rubric_sha256"] != facts.rubric_sha256:
        why = "not judged by the version's own rubric and against its own opponent"
    elif said["fixed_before_training"] != "yes":
        fixed = {"no": "its rubric is younger than its weights"}
        unknown = "no run tells whether its rubric was fixed before training"
        why = fixed.get(said["fixed_before_training"], unknown)
        remedy = "train a version with that rubric, on other data or with another seed"
    else:
        rate = said["win_rate"]
    yield _rate("judge", rate, settings.judge_min_win_rate, why, facts, remedy)


def _rate(
    gate: Literal["votes", "judge"],
    rate: Mapping[str, Any],
    limit: float,
    missing: str | None,
    facts: Facts,
    remedy: str,
) -> Gate:
    """A win rate passes with the lower end of its interval: a few lucky votes prove nothing."""
    value, low = rate["value"], rate["low"]
    passed = missing is None and low is not None and low >= limit
    if missing is None:
        outcome = "at least" if passed else "below"
        missing = (
            "there is no win rate"
            if value is None or low is None
            else f"a win rate of {value:.3f} {_against(facts)}, whose interval begins at {low:.3f}, "
            f"{outcome} {limit:g}"
        )
    return {
        "gate": gate,
        "metric": "win_rate",
        "value": value,
        "low": low,
        "limit": limit,
        "passed": passed,
        "why": missing,
        "remedy": remedy if value is None else f"{remedy} again, or a better model",
    }


def _latency(facts: Facts, settings: Promote) -> Iterator[Gate]:
    limit = settings.max_latency_p95_seconds
    if limit is None:
        return
    value = facts.latency
    passed = value is not None and value <= limit
    if value is None:
        why = "the run of evaluate has no latency_p95_seconds"
        remedy = (
            "`tunetrail sync` where it was trained delivers that run, if it waits there; else "
            "`dvc repro --force evaluate` with MLflow in reach"
        )
    else:
        outcome = "at most" if passed else "above"
        why = f"95% of its answers came within {value:.3g} s, {outcome} {limit:g}"
        remedy = "a smaller model, shorter answers (evaluate.max_new_tokens) or another engine"
    yield {
        "gate": "latency",
        "metric": "p95_seconds",
        "value": value,
        "low": None,
        "limit": limit,
        "passed": passed,
        "why": why,
        "remedy": remedy,
    }


def _against(facts: Facts) -> str:
    return f"against {facts.against}" if facts.against else "against a candidate that it names"


def _review(facts: Facts) -> str:
    if facts.against is None:
        return "the version does not say against what; register it anew with `tunetrail run`"
    return f"`tunetrail review export {facts.reference}`"
