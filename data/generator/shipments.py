"""shipments.jsonl: the labelled messages of ten weeks, with faults planted among them."""

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random

from data.generator import faults
from data.generator import vocabulary as v
from data.generator.messages import LATE_FROM, Desk, Message, moment, quota

FIRST = datetime(2026, 7, 6)
TRAIN_DAYS, TEST_DAYS = 56, 14
TRAIN_ROWS, TEST_ROWS = 1120, 280
UNCLEAR = ((34, FIRST, TRAIN_DAYS), (6, LATE_FROM, TEST_DAYS))
NEAR_DUPLICATES, LEAKS, CONFLICTS = 40, 20, 10
# Rows with personal data: kind, in the training window, in the test window.
PERSONAL = (("email", 13, 2), ("phone", 10, 2), ("iban", 4, 1), ("card", 3, 1))


@dataclass(eq=False, slots=True)
class Entry:
    """A line to be written: a message, and what is wrong with it (`kind` is `good` if nothing).

    `source` is the entry that a copy was made from; `id` is set once all entries are in order.
    """

    message: Message
    kind: str = "good"
    source: "Entry | None" = None
    id: str = ""
    line: int = 0

    def row(self) -> faults.Row:
        """The fields of the line, in the order in which they are written."""
        return {
            "id": self.id,
            "received": stamp(self.message.received),
            "channel": self.message.channel,
            "text": self.message.text,
            "category": self.message.category,
            "eta": self.message.eta,
        }

    def render(self) -> bytes:
        """The line without its newline."""
        if self.kind in faults.MALFORMED:
            return faults.MALFORMED[self.kind][1](self.row())
        return faults.dumps(self.row()).encode()


def stamp(received: datetime) -> str:
    """The time as it is written in the files."""
    return f"{received:%Y-%m-%dT%H:%M:%SZ}"


def make(rng: Random, desk: Desk) -> list[Entry]:
    """All entries in the order of the file, with ids and line numbers."""
    train = _good(rng, desk, FIRST, TRAIN_DAYS, TRAIN_ROWS - UNCLEAR[0][0])
    test = _good(rng, desk, LATE_FROM, TEST_DAYS, TEST_ROWS - UNCLEAR[1][0])
    entries = [*train, *test, *_unclear(rng, desk), *_personal(rng, desk)]
    entries += _copies(rng, train, test)
    entries += _malformed(rng, desk, train)
    entries.sort(key=lambda entry: entry.message.received)
    _number(entries)
    return entries


def _good(rng: Random, desk: Desk, first: datetime, days: int, rows: int) -> list[Entry]:
    names = quota(rows)
    rng.shuffle(names)
    return [Entry(desk.message(moment(rng, first, days), name)) for name in names]


def _unclear(rng: Random, desk: Desk) -> list[Entry]:
    return [
        Entry(desk.unclear(moment(rng, first, days), v.RULES[number % len(v.RULES)]), "unclear")
        for rows, first, days in UNCLEAR
        for number in range(rows)
    ]


def _personal(rng: Random, desk: Desk) -> list[Entry]:
    found = []
    for kind, train, test in PERSONAL:
        for number in range(train + test):
            window = (FIRST, TRAIN_DAYS) if number < train else (LATE_FROM, TEST_DAYS)
            message = desk.message(moment(rng, *window), rng.choice(quota(100)))
            text = faults.with_personal_data(message.text, kind, number, rng)
            found.append(Entry(replace(message, text=text), kind))
    return found


def _copies(rng: Random, train: list[Entry], test: list[Entry]) -> list[Entry]:
    """Near-duplicates, leaks and contradictions; no row serves twice.

    Copies move by whole weeks, so that the weekdays in them stay true.
    """
    pool = [
        entry
        for entry in train
        if faults.long_enough(entry.message.text)
        and entry.message.received < LATE_FROM - timedelta(weeks=1)
    ]
    sources = rng.sample(pool, NEAR_DUPLICATES + CONFLICTS)
    leaked = rng.sample([e for e in test if faults.long_enough(e.message.text)], LEAKS)
    found = []
    for source in sources[:NEAR_DUPLICATES]:
        text = faults.near_copy(source.message.text, rng)
        later = source.message.received + timedelta(weeks=rng.randrange(2), minutes=1)
        found.append(
            Entry(replace(source.message, received=later, text=text), "near_duplicate", source)
        )
    for source in sources[NEAR_DUPLICATES:]:
        other = rng.choice(v.BY_NAME[source.message.category].confused)
        later = source.message.received + timedelta(weeks=1)
        found.append(
            Entry(replace(source.message, received=later, category=other), "conflict", source)
        )
    for source in leaked:
        text = faults.near_copy(source.message.text, rng)
        earlier = source.message.received - timedelta(weeks=rng.randrange(2, 9))
        found.append(Entry(replace(source.message, received=earlier, text=text), "leak", source))
    return found


def _malformed(rng: Random, desk: Desk, train: list[Entry]) -> list[Entry]:
    found = []
    for kind, (count, _) in faults.MALFORMED.items():
        for _ in range(count):
            message = desk.message(moment(rng, FIRST, TRAIN_DAYS), rng.choice(quota(100)))
            source = None
            if kind == "duplicate_id":
                source = rng.choice([e for e in train if e.message.received < message.received])
            found.append(Entry(message, kind, source))
    return found


def _number(entries: list[Entry]) -> None:
    for line, entry in enumerate(entries, start=1):
        entry.line = line
        entry.id = f"S-{line:06d}"
    for entry in entries:
        if entry.kind == "duplicate_id" and entry.source:
            entry.id = entry.source.id


def by_kind(entries: list[Entry]) -> dict[str, list[Entry]]:
    """The entries of each kind, for the README."""
    found: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.kind].append(entry)
    return dict(found)
