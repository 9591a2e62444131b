"""Records for benchmarks/data.py: the same bytes from the same seed, with known faults among them."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEED = 20260706
CLASSES = (
    "delivery_delay",
    "status_request",
    "address_issue",
    "customs_hold",
    "missed_pickup",
    "damaged_goods",
    "documents_missing",
    "lost_parcel",
    "return_to_sender",
    "rolled_booking",
    "temperature_deviation",
    "dangerous_goods",
)
COLUMNS = ["id", "received", "channel", "text", "category"]
FIRST_DAY = datetime.date(2026, 1, 1)
DAYS = 100
TEST_FROM = FIRST_DAY + datetime.timedelta(days=90)
"""A tenth of the rows, which are spread evenly over the days, is from this day on."""

MALFORMED, PERSONAL, COPIES = 0.005, 0.01, 0.01
"""Shares of the lines."""
VOCABULARY = 30_000
BLOCK = 10_000
"""Lines that are made at once; a copy is of a row of the same block."""


@dataclass(frozen=True)
class Written:
    """How many lines of each sort a file has; all others are sound and like no other."""

    rows: int
    malformed: int
    personal: int
    copies: int


def write(path: Path, rows: int, words: list[str], malformed: bool) -> Written:
    """Write a JSONL file of about 300 bytes a line.

    Args:
        words: what texts are made of, the commonest first; Zipf's law says how common.
        malformed: whether some lines are broken, as the peer cannot read those.
    """
    generator = np.random.default_rng(SEED)
    cumulated = np.cumsum(1 / np.arange(1, len(words) + 1))
    vocabulary = np.array(words, dtype=object)
    counts = np.zeros(3, dtype=int)
    with path.open("wb") as file:
        for first in range(0, rows, BLOCK):
            size = min(BLOCK, rows - first)
            made = _block(generator, first, size, vocabulary, cumulated, malformed, counts)
            file.writelines(made)
    return Written(rows, *(int(count) for count in counts))


def vocabulary(texts: list[Path]) -> list[str]:
    """The words of the shipped texts by how common they are, then made-up ones."""
    counts: Counter[str] = Counter()
    for path in texts:
        for line in lines(path):
            values = " ".join(map(str, json.loads(line).values()))
            counts.update(re.findall(r"[a-z]+", values.lower()))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    known = set(words)
    generator = np.random.default_rng(SEED)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    while len(words) < VOCABULARY:
        word = "".join(generator.choice(syllables, size=generator.integers(2, 5)))
        if word not in known:
            known.add(word)
            words.append(word)
    return words[:VOCABULARY]


def _block(
    generator: np.random.Generator,
    first: int,
    size: int,
    vocabulary: np.ndarray,
    cumulated: np.ndarray,
    malformed: bool,
    counts: np.ndarray,
) -> list[bytes]:
    """`size` lines; as much is drawn for fewer, so a short file is the beginning of a long one."""
    lengths = generator.integers(22, 36, size=BLOCK)
    drawn = np.searchsorted(cumulated, generator.random(lengths.sum()) * cumulated[-1])
    words = vocabulary[drawn].tolist()
    ends = np.cumsum(lengths).tolist()
    labels = generator.integers(0, len(CLASSES), size=BLOCK).tolist()
    minutes = generator.integers(0, DAYS * 24 * 60, size=BLOCK).tolist()
    luck = generator.random(BLOCK).tolist()
    chosen = generator.integers(0, 2**31, size=BLOCK).tolist()

    made: list[bytes] = []
    texts: list[list[str]] = []
    for at in range(size):
        text = words[ends[at] - int(lengths[at]) : ends[at]]
        label = labels[at]
        kind = _kind(luck[at])
        if kind == "copy" and at:
            original = chosen[at] % at
            text, label = list(texts[original]), labels[original]
            text[chosen[at] % len(text)] = "again"
        texts.append(text)
        labels[at] = label
        number = first + at + 1
        shown = " ".join(text)
        if kind == "personal":
            shown += _personal(chosen[at], number)
        line = (
            f'{{"id":"R-{number:08}","received":"{_time(minutes[at])}","channel":"email",'
            f'"text":"{CLASSES[label].replace("_", " ")}: {shown}","category":"{CLASSES[label]}"}}\n'
        ).encode()
        if kind == "malformed" and malformed:
            line = _broken(line, chosen[at])
        counts += (kind == "malformed" and malformed, kind == "personal", kind == "copy" and at > 0)
        made.append(line)
    return made


def _kind(luck: float) -> str:
    for kind, share in (("malformed", MALFORMED), ("personal", PERSONAL), ("copy", COPIES)):
        if luck < share:
            return kind
        luck -= share
    return "sound"


def _time(minutes: int) -> str:
    day = FIRST_DAY + datetime.timedelta(days=minutes // 1440)
    return f"{day.isoformat()}T{minutes // 60 % 24:02}:{minutes % 60:02}:00Z"


def _personal(chosen: int, number: int) -> str:
    return (
        f" mail me at driver{number}@example.com",
        f" call +49 30 {1000000 + number % 8999999}",
        " pay to DE89 3704 0044 0532 0130 00",
        " card 4111 1111 1111 1111",
        f" from host 84.{number % 250 + 1}.{number // 250 % 250 + 1}.7",
    )[chosen % 5]


def _broken(line: bytes, chosen: int) -> bytes:
    return (
        lambda: line[: len(line) // 2] + b"\n",
        lambda: line.replace(b'"channel":"email"', b'"channel":NaN'),
        lambda: line.replace(b'"channel":"email"', b'"id":"R-0","channel":"email"'),
        lambda: line.replace(b'"channel":"email",', b""),
        lambda: line.replace(b": ", b"\x00", 1),
        lambda: line.replace(b": ", b"\xff", 1),
        lambda: b"null\n",
        lambda: b"[" + line[:-1] + b"]\n",
    )[chosen % 8]()


def mapped(values: dict[str, str]) -> list[dict[str, str]]:
    """The conversation of a row, as the template of benchmarks/data.py makes it."""
    answer = json.dumps({"category": values["category"]}, separators=(",", ":"))
    return [
        {"role": "user", "content": f"Message: {values['text']}\nLabel:"},
        {"role": "assistant", "content": answer},
    ]


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file."""
    with path.open("rb") as file:
        yield from file
