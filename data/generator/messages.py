"""Composes one message of the desk: an opening, what happened, when it ends, and small talk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import TypeVar

from data.generator import vocabulary as v
from data.generator.similarity import Novelty, words

T = TypeVar("T")

SHORTEST, LONGEST = 8, 35
LATE_FROM = datetime(2026, 8, 31)

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
# A reference and a weight side by side read like a telephone number.
_NUMBERS_MEET = re.compile(r"\d{4}[ /-]+\d")
_PLAIN = re.compile(r"[a-z]+")
_SENTENCE = re.compile(r"(^|[.?] )([a-z])")
_SEPARATORS = {
    "email": (". ", ", ", ". "),
    "driver": (", ", " ", ". "),
    "scanner": (" / ", " - ", ". "),
    "portal": (". ", ". ", ", "),
}
# Share of messages in lower case, as a probability; the others begin sentences with a capital.
_LOWER = {"email": 0.1, "driver": 0.65, "scanner": 0.5, "portal": 0.2}
_ABBREVIATE = {"email": 0.12, "driver": 0.35, "scanner": 0.35, "portal": 0.06}
_MISSPELL = 0.06


@dataclass(frozen=True, slots=True)
class Message:
    """A text with its label.

    `happened` and `ending` are the clauses that decide it, as they were before abbreviations,
    misspellings and case; `rule` is set where two categories fit and the desk's rule decides.
    """

    received: datetime
    channel: str
    text: str
    category: str
    eta: str
    happened: str
    ending: str
    rule: v.Rule | None = None


def weighted(rng: Random, options: Sequence[tuple[T, int]]) -> T:
    """One option, by weight. Written out because `Random.choices` may change its algorithm."""
    point = rng.random() * sum(weight for _, weight in options)
    for option, weight in options:
        point -= weight
        if point < 0:
            return option
    return options[-1][0]


def expand(template: str, rng: Random, scene: dict[str, str]) -> str:
    """Settle the `[a|b]` choices, then fill the `{name}` slots from the scene."""
    settled = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return settled.format_map(scene)


def moment(rng: Random, first: datetime, days: int) -> datetime:
    """A minute in the desk's hours; weekends are quiet."""
    day = weighted(
        rng,
        [(d, (6, 6, 6, 6, 6, 2, 1)[(first + timedelta(d)).weekday()]) for d in range(days)],
    )
    hour = weighted(rng, [(h, 8 if 7 <= h <= 16 else 3) for h in range(5, 21)])
    return first + timedelta(days=day, hours=hour, minutes=rng.randrange(60))


def reference(rng: Random) -> str:
    """An order, air waybill or container number in one of the desk's spellings."""
    kind = rng.choice(("AWB {}", "order {}", "ord {}", "NFDU {}", "ref {}", "shipment {}"))
    return kind.format(rng.randrange(1000, 99999))


def scene(rng: Random, received: datetime) -> dict[str, str]:
    """The facts that a message may mention; weekdays and hours agree with `received`."""
    late = received >= LATE_FROM
    lane = v.LATE_LANE if late and rng.random() < 0.12 else rng.choice(v.LANES)
    carrier = v.LATE_CARRIER if late and rng.random() < 0.2 else rng.choice(v.CARRIERS)
    later, far, ago = rng.randrange(3, 6), rng.randrange(6, 11), rng.randrange(2, 5)

    spelt = ("six", "seven", "eight", "nine", "ten")[far - 6]

    def weekday(days: int) -> str:
        return ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[
            (received + timedelta(days)).weekday()
        ]

    return {
        "ref": reference(rng),
        "origin": lane[0],
        "destination": lane[1],
        "city": rng.choice(lane),
        "lane": rng.choice(("{}-{}", "{} to {}", "{}/{}")).format(*lane),
        "carrier": carrier,
        "cargo": rng.choice(v.CARGO),
        "pieces": f"{rng.randrange(2, 30)} {rng.choice(('pal', 'plt', 'pallets', 'ctns', 'pcs'))}",
        "size": rng.choice(
            (
                f"{rng.randrange(80, 990)} kg",
                f"{rng.randrange(1, 22)},{rng.randrange(100, 999)} KGS",
                f"{rng.randrange(150, 2400)} lbs",
                f"{rng.randrange(1, 40)}.{rng.randrange(1, 10)} cbm",
                f"{rng.randrange(2, 60)} m3",
            )
        ),
        "line": str(rng.randrange(1, 13)),
        "warm": str(rng.randrange(9, 15)),
        "hour": str(min(received.hour + rng.randrange(2, 5), 23)),
        "soon": weekday(2),
        "later": weekday(later),
        "later_days": ("three", "four", "five")[later - 3],
        "far": weekday(far),
        "far_days": rng.choice((str(far), spelt, spelt)),
        "ago": str(ago),
        "past": weekday(-ago),
    }


def when(rng: Random, eta: str, facts: dict[str, str]) -> str:
    """The clause that gives the ETA away; empty where an unknown ETA is simply not mentioned."""
    if eta == "unknown":
        return "" if rng.random() < 0.2 else expand(rng.choice(v.UNKNOWN), rng, facts)
    if eta == "today" and rng.random() < 0.25:
        return expand("out for delivery [today|this aft|this afternoon|tonight]", rng, facts)
    return expand(f"{rng.choice(v.WHEN_LEADS)} {rng.choice(v.WHEN[eta])}", rng, facts)


def roughen(text: str, rng: Random, channel: str) -> str:
    """Abbreviate and misspell single words, as people in a hurry do."""

    def one(match: re.Match[str]) -> str:
        word = match[0]
        if word in v.ABBREVIATIONS and rng.random() < _ABBREVIATE[channel]:
            return v.ABBREVIATIONS[word]
        if word in v.MISSPELT and rng.random() < _MISSPELL:
            return v.MISSPELT[word]
        return word

    return _PLAIN.sub(one, text)


def dress(text: str, rng: Random, channel: str) -> str:
    """Lower case or sentence case."""
    if rng.random() < _LOWER[channel]:
        return text.lower()
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)


def cue(rng: Random, category: str, facts: dict[str, str]) -> str:
    """A clause that settles the category."""
    return expand(rng.choice(v.BY_NAME[category].cues), rng, facts)


def small_talk(rng: Random, category: str, opening: str, facts: dict[str, str]) -> list[str]:
    """Clauses that settle nothing; some borrow another category's words or name a past date.

    No fact is told twice: a filler is left out when its slot is in the opening already.
    """
    told = set(_SLOT.findall(opening))
    found: list[str] = []
    for filler in rng.sample(v.FILLERS, rng.randrange(3)):
        if told.isdisjoint(_SLOT.findall(filler)):
            told.update(_SLOT.findall(filler))
            found.append(filler)
    if rng.random() < 0.18:
        other = rng.choice([c for c in v.CATEGORIES if c.name != category])
        found.append(rng.choice(other.clear))
    if rng.random() < 0.12:
        found.append(rng.choice(v.PAST))
    rng.shuffle(found)
    return [expand(template, rng, facts) for template in found]


def compose(
    rng: Random, received: datetime, category: str, eta: str, rule: v.Rule | None
) -> Message:
    """One candidate message; it may be too short, too long, or too close to another."""
    channel = weighted(rng, v.CHANNELS)
    facts = scene(rng, received)
    if rule is None:
        happened = cue(rng, category, facts)
    else:
        both = [cue(rng, rule.first, facts), cue(rng, rule.second, facts)]
        rng.shuffle(both)
        happened = rng.choice((" and ", ", also ", " plus ")).join(both)
    ending = when(rng, eta, facts)
    opening = rng.choice(v.OPENINGS[channel])
    clauses = [happened, *([ending] if ending else []), *small_talk(rng, category, opening, facts)]
    if rng.random() < 0.25:
        rng.shuffle(clauses)
    if rng.random() < 0.2:
        clauses.append(expand(rng.choice(v.CLOSERS), rng, facts))
    text = (
        expand(opening, rng, facts)
        + rng.choice((": ", " - ", ", "))
        + rng.choice(_SEPARATORS[channel]).join(clauses)
    )
    if channel in ("email", "portal"):
        text += "."
    text = dress(roughen(text, rng, channel), rng, channel)
    return Message(received, channel, text, category, eta, happened, ending, rule)


class Desk:
    """Makes messages, none of them close to another it has made."""

    def __init__(self, rng: Random, novelty: Novelty) -> None:
        self._rng = rng
        self._novelty = novelty

    def message(self, received: datetime, category: str) -> Message:
        """A message of a given category, with an ETA that is usual for it."""
        return self._admitted(received, category, None)

    def unclear(self, received: datetime, rule: v.Rule) -> Message:
        """A message that fits two categories and is labelled by the desk's rule."""
        return self._admitted(received, rule.winner, rule)

    def note(self, received: datetime, category: str) -> Message:
        """A message cut down to what decides the label, as a colleague would jot it down.

        Notes may be close to each other, but not to a message.
        """
        while True:
            made = compose(self._rng, received, category, self._eta(category), None)
            parts = [made.happened, made.ending] if made.ending else [made.happened]
            if self._rng.random() < 0.25:
                parts.reverse()
            text = self._rng.choice((", ", ". ", " - ")).join(parts)
            text = dress(roughen(text, self._rng, made.channel), self._rng, made.channel)
            if not self._novelty.close(text):
                return replace(made, text=text)

    def _eta(self, category: str) -> str:
        weights = v.BY_NAME[category].etas
        return weighted(self._rng, tuple(zip(v.ETAS, weights, strict=True)))

    def _admitted(self, received: datetime, category: str, rule: v.Rule | None) -> Message:
        while True:
            made = compose(self._rng, received, category, self._eta(category), rule)
            fits = SHORTEST <= len(words(made.text)) <= LONGEST
            if fits and not _NUMBERS_MEET.search(made.text) and self._novelty.admit(made.text):
                return made


def quota(total: int) -> list[str]:
    """`total` category names in the desk's proportions; the largest takes what rounding leaves."""
    names = [c.name for c in v.CATEGORIES for _ in range(round(c.share * total / 1000))]
    largest = v.CATEGORIES[0].name
    return names[-total:] if len(names) > total else names + [largest] * (total - len(names))
