"""Blind review: a page on which people compare answers, and the votes that they bring back.

The page is one file that needs nothing else and no network.  It holds requests and answers, and
nothing that tells which model an answer is from; that stands in the key, which stays behind.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.lineage.stage import StageError
from tasks.voting.pairs import Drawn, Pair

FORMAT = "tunetrail votes 1"
MOST_BYTES = 5_000_000
"""Of a votes file; a vote has some twenty."""

Shown = Literal["final", "other"]
"""Which answer is shown first."""


class Refused(StageError):
    """A votes file does not count. The message says which, and why."""


@dataclass(frozen=True)
class Export:
    """A page and its key."""

    html: str
    export: str
    """sha256 of what the page shows, by which votes on it are recognised."""
    key: dict[str, dict[str, str]]
    """By number on the page: `row`, and `first`, the candidate that is shown first (`Shown`)."""


@dataclass(frozen=True)
class VotesFile:
    """What one person brought back."""

    name: str
    """Of the file."""
    version: str
    export: str
    person: str
    votes: dict[str, str]
    """"first", "second" or "tie", by number on the page."""

    def scores(self, key: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
        """The final candidate's score by row.

        Raises:
            Refused: when a number is not on the page.
        """
        unknown = sorted(self.votes.keys() - key.keys())
        if unknown:
            raise Refused(f"{self.name}: votes on pair {unknown[0]}, which its page does not have")
        return {key[pair]["row"]: _score(side, key[pair]) for pair, side in self.votes.items()}


def _score(side: str, pair: Mapping[str, str]) -> float:
    if side == "tie":
        return 0.5
    return float((side == "first") == (pair["first"] == "final"))


def export(version: str, drawn: Drawn, rubric: str) -> Export:
    """A page with the pairs in random order, each with its sides at random.

    The chance is the system's, not a seed's: whoever knew the seed would know the sides.
    """
    chance = random.SystemRandom()
    pairs = chance.sample(drawn.pairs, len(drawn.pairs))
    firsts: list[Shown] = ["final" if secrets.randbits(1) else "other" for _ in pairs]
    payload = _as_script(
        {
            "version": version,
            "rubric": rubric.strip(),
            "pairs": [_shown(pair, first) for pair, first in zip(pairs, firsts, strict=True)],
        }
    )
    identity = hashlib.sha256(payload.encode()).hexdigest()
    key = {
        str(number): {"row": pair.row, "first": first}
        for number, (pair, first) in enumerate(zip(pairs, firsts, strict=True))
    }
    return Export(_render(version, rubric, len(pairs), payload, identity), identity, key)


def _shown(pair: Pair, first: Shown) -> dict[str, Any]:
    sides = (pair.final, pair.other) if first == "final" else (pair.other, pair.final)
    request = [{"role": turn["role"], "content": turn["content"]} for turn in pair.request]
    return {"request": request, "first": sides[0], "second": sides[1]}


def _as_script(value: object) -> str:
    """JSON that a script element can hold, whatever a model wrote: no tag can begin or end in it, and
    a browser reads the very bytes that were hashed."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _render(version: str, rubric: str, count: int, payload: str, identity: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    style = (here / "page.css").read_text(encoding="utf-8")
    script = (here / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        version=version,
        rubric=rubric.strip(),
        count=count,
        style=style,
        style_hash=_source_hash(style),
        script=script,
        script_hash=_source_hash(script),
        payload=payload,
        export=identity,
    )


def _source_hash(text: str) -> str:
    """As a Content-Security-Policy names a script or style that stands in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def read_votes(path: Path) -> VotesFile:
    """Read what the page let somebody download.

    The sum at its end tells damage and careless edits; whoever wants to deceive can compute it anew,
    as they could have voted otherwise.

    Raises:
        Refused: when it is something else, or was altered.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Refused(f"{path.name}: larger than {MOST_BYTES:,} bytes, so no votes file")
        told = json.loads(path.read_text(encoding="utf-8"))
        votes = VotesFile(
            path.name, told["version"], told["export"], told["person"], dict(told["votes"])
        )
        fields = (told["format"], votes.version, votes.export, votes.person)
        well_formed = told["format"] == FORMAT and all(isinstance(one, str) for one in fields)
        sides = set(votes.votes.values()) <= {"first", "second", "tie"}
        lines = [f"{pair} {votes.votes[pair]}" for pair in sorted(votes.votes, key=int)]
        whole = checksum(*fields, *lines) == told["sha256"]
    except OSError as error:
        raise Refused(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(
            f"{path.name}: not a votes file; it is what the page's button Download votes gives"
        ) from None
    if not (well_formed and sides and whole):
        raise Refused(
            f"{path.name}: altered after it was downloaded; ask for the file that the page gave"
        )
    if not votes.person.strip():
        raise Refused(f"{path.name}: names nobody; ask for a file with a name")
    if not votes.votes:
        raise Refused(f"{path.name}: holds no vote")
    return votes


def checksum(*lines: str) -> str:
    """The sum that the page writes into a votes file."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
