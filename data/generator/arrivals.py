"""Example arrivals for `tunetrail drift`: messages of a later week, with a shift or without.

    python -m data.generator.arrivals --shift category --out data/incoming/week-45.jsonl

The same options give the same bytes.  Every shift is one that happens to a desk:

    none         as in the weeks that were trained on, faults included
    category     a customer with dangerous goods: a category that training hardly has
    unknown      a category that `validate.answer_schema` does not know: its rows are rejected
    vocabulary   another region: its carriers, places, goods and words
    labels       the desk labels by other rules: two categories are no longer told apart from others
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random

from data.generator import faults
from data.generator.messages import Desk, Message, moment, quota
from data.generator.shipments import FIRST, TRAIN_DAYS, Entry
from data.generator.similarity import Novelty

WEEKS_LATER = 18
"""By whole weeks, so that the weekdays in the messages stay true."""
TOO_CLOSE = 0.7
MALFORMED_SHARE = 0.01
PERSONAL_SHARE = 0.02
"""Of the rows; about what training has."""

NEW_SHARE = 0.25
"""Of the rows, that a new category takes."""
NEW_CATEGORY, UNKNOWN_CATEGORY = "dangerous_goods", "port_strike"

WORDS = {
    "truck": "lorry", "driver": "haulier", "pallets": "skids", "shipment": "consignment",
    "delivery": "drop-off", "customer": "shipper", "depot": "terminal", "container": "box",
    "hamburg": "Genoa", "oslo": "Valencia", "rotterdam": "Piraeus", "bergen": "Bari",
    "antwerp": "Koper", "leeds": "Split", "gdansk": "Varna", "malmo": "Izmir",
    "lyon": "Tarragona", "milan": "Salerno", "porto": "Patras", "madrid": "Ravenna",
    "tarn": "Adria", "halden": "Levant", "corvo": "Maestro", "ostra": "Ionia",
    "coffee": "citrus", "textiles": "olive oil", "tiles": "marble", "pipes": "tomato paste",
}  # fmt: skip
"""Of the other region, by those that training has."""

POLICY = {"missed_pickup": "delivery_delay", "documents_missing": "customs_hold",
          "return_to_sender": "address_issue"}  # fmt: skip
"""What the desk calls categories under its new rules."""


def entries(shift: str, rows: int, seed: int) -> list[Entry]:
    """The entries of a file in the order of their times, with ids and line numbers."""
    rng = Random(f"{shift} {rows} {seed}")
    desk = Desk(rng, Novelty(TOO_CLOSE))
    names = _names(shift, rows, rng)
    malformed = set(rng.sample(range(rows), round(rows * MALFORMED_SHARE)))
    personal = set(rng.sample(range(rows), round(rows * PERSONAL_SHARE)))
    kinds = [kind for kind in faults.MALFORMED if kind != "duplicate_id"]
    found = []
    for number, name in enumerate(names):
        unknown = name == UNKNOWN_CATEGORY
        made = desk.message(moment(rng, FIRST, TRAIN_DAYS), "delivery_delay" if unknown else name)
        made = SHIFTS[shift](made)
        kind = "good"
        if unknown:
            made = replace(made, text=f"{made.text} Port on strike.", category=UNKNOWN_CATEGORY)
        elif number in malformed:
            kind = rng.choice(kinds)
        elif number in personal:
            kind = rng.choice(("email", "phone", "iban"))
            made = replace(made, text=faults.with_personal_data(made.text, kind, number, rng))
        later = made.received + timedelta(weeks=WEEKS_LATER)
        found.append(Entry(replace(made, received=later), kind))
    found.sort(key=lambda entry: entry.message.received)
    for line, entry in enumerate(found, start=1):
        entry.line, entry.id = line, f"A-{seed:03d}-{line:06d}"
    return found


def _names(shift: str, rows: int, rng: Random) -> list[str]:
    new = {"category": NEW_CATEGORY, "unknown": UNKNOWN_CATEGORY}.get(shift)
    names = quota(1000)
    return [
        new if new is not None and rng.random() < NEW_SHARE else rng.choice(names)
        for _ in range(rows)
    ]


def _as_it_is(made: Message) -> Message:
    return made


def _elsewhere(made: Message) -> Message:
    """The same message with the words of the other region."""

    def other(match: re.Match[str]) -> str:
        return WORDS[match[0].lower()]

    return replace(made, text=_WORDS.sub(other, made.text))


_WORDS = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def _by_other_rules(made: Message) -> Message:
    return replace(made, category=POLICY.get(made.category, made.category))


SHIFTS: dict[str, Callable[[Message], Message]] = {
    "none": _as_it_is,
    "category": _as_it_is,
    "unknown": _as_it_is,
    "vocabulary": _elsewhere,
    "labels": _by_other_rules,
}


def content(shift: str, rows: int, seed: int) -> bytes:
    """The file."""
    return b"".join(entry.render() + b"\n" for entry in entries(shift, rows, seed))


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(
        prog="python -m data.generator.arrivals",
        description="Write example arrivals of the Norden Freight desk.",
    )
    parser.add_argument("--shift", choices=list(SHIFTS), default="none", help="what has changed")
    parser.add_argument("--rows", type=int, default=400, help="lines to write")
    parser.add_argument("--seed", type=int, default=1, help="another number gives other messages")
    parser.add_argument("--out", type=Path, required=True, help="the file, below data/incoming")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # beside and renamed: a check that looks meanwhile sees the whole file or none
    beside = options.out.with_name(f".{options.out.name}.partial")
    beside.write_bytes(content(options.shift, options.rows, options.seed))
    beside.replace(options.out)
    print(f"{options.out}: {options.rows} lines, shift {options.shift}")


if __name__ == "__main__":
    main()
