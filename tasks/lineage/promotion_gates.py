"""What a promotion asks in numbers: people's votes, the judge's, and how fast the model answers.

A pure function of what is known of the version and of the section `promote` of params.yaml.  Like
the gates of the verdict: a number that is missing fails its gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
class Asked:
    """What a version's own params.yaml says of its judge: chosen before its answers were known."""

    model: str | None
    rubric_sha256: str
    pairs: int


@dataclass(frozen=True)
class Facts:
    """What is known of a version."""

    reference: str
    against: str | None
    """The candidate that answers are compared with; None when the version does not say."""
    tally: Tally
    """Of people's votes against it."""
    judgements: Sequence[Mapping[str, Any]]
    """Of `tunetrail judge`, sealed by a trusted key, oldest first."""
    asked: Asked | None
    """None when the version does not say."""
    latency: float | None
    """Seconds within which 95% of its answers came, as the run of evaluate has it."""

    @property
    def counted(self) -> Mapping[str, Any] | None:
        """The judgement that counts.

        It is the first one as the version itself asks for it, so that nobody asks until the answer
        pleases.  One that says "not judged", or that does not know whether the rubric was fixed,
        passes no gate: it counts until there is one that does.
        """
        own = [said for said in self.judgements if self.differs(said) is None]
        settled = [
            said
            for said in own
            if said["answer"] == "judged" and said["fixed_before_training"] != "unknown"
        ]
        return settled[0] if settled else own[-1] if own else None

    def differs(self, said: Mapping[str, Any]) -> str | None:
        """In what a judgement is not the one that the version asks for."""
        if self.asked is None:
            return "the version does not say by which model it is to be judged"
        drawn = min(self.asked.pairs, said["test_rows"] - said["same_answer"])
        for what, found, own in (
            ("by", said["model"], self.asked.model),
            ("against", said["against"], self.against),
            ("by rubric", said["rubric_sha256"][:12], self.asked.rubric_sha256[:12]),
            ("on a number of pairs of", len(said["pairs"]), drawn),
        ):
            if found != own:
                return f"{what} {found}, where the version's own params.yaml has {own or 'null'}"
        return None


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
    said, known = facts.counted, len(facts.judgements)
    rate: Mapping[str, float | None] = {"value": None, "low": None}
    remedy = f"`tunetrail judge {facts.reference}`"
    why = None
    if facts.asked is not None and facts.asked.model is None:
        why = "not judged: its params.yaml names no judge.model, so that any would do afterwards"
        remedy = "name judge.model, and train a version on other data or with another seed"
    elif said is None:
        why = "not judged: nobody has asked a judge"
        if known:
            why = f"not judged as it asks for: {facts.differs(facts.judgements[-1])}"
    elif said["answer"] != "judged":
        why = f"not judged: {said['why']}"
    elif said["fixed_before_training"] != "yes":
        fixed = {"no": "its rubric is younger than its weights"}
        unknown = "no run tells whether its rubric was fixed before training"
        why = fixed.get(said["fixed_before_training"], unknown)
        remedy = (
            "train a version with that rubric, on other data or with another seed"
            if said["fixed_before_training"] in fixed
            else f"`tunetrail sync` where it was trained delivers that run, then {remedy} again"
        )
    else:
        rate = said["win_rate"]
    held = _rate("judge", rate, settings.judge_min_win_rate, why, facts, remedy)
    if said is not None and known > 1:
        number = facts.judgements.index(said) + 1
        held["why"] += f" (judgement {number} of {known}; the first as the version asks for counts)"
    if rate["value"] is not None:
        held["remedy"] = "a better model; asking the judge again changes nothing"
    yield held


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
