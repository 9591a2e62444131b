"""README.md of the example data: every number in it is counted from the rows beside it."""

from collections import Counter
from collections.abc import Iterable

from data.generator import vocabulary as v
from data.generator.faults import MALFORMED, Row
from data.generator.messages import LATE_FROM
from data.generator.preferences import Pair
from data.generator.shipments import FIRST, TEST_DAYS, TRAIN_DAYS, Entry, by_kind, stamp

_PLANTED = {
    "near_duplicate": "dropped as a near-duplicate at format",
    "leak": "dropped from training as a leak at format",
    "conflict": "both rows rejected at validate: same text, two categories",
    "email": "redacted or rejected at validate",
    "phone": "redacted or rejected at validate",
    "iban": "redacted or rejected at validate",
    "card": "redacted or rejected at validate",
}
_MALFORMED = "rejected with a reason at ingest"
# Well-formed records whose values break a rule of the desk; the rules belong to validate.
_RULE_BREAKERS = {"unknown_category", "unknown_eta"}
_AT_VALIDATE = "rejected with a reason at validate"

_INTRO = """\
# The example data

Written by `data/generator`, which also wrote this page and counted every number on it. Nothing
here was copied from anywhere: the Norden Freight desk, its carriers and its customers do not
exist. Licence: Apache-2.0, like the rest of the repository.

The desk sorts short messages about shipments. A model reads the text and answers with strict
JSON, for example `{"category":"customs_hold","eta":"3-5d"}`.

To write the files again, byte for byte the same on any machine:

    python -m data.generator --out data/raw
"""


def write(shipments: list[Entry], pairs: list[Pair], corpus: list[Row], general: list[Row]) -> str:
    """The page, from the rows that go into the other files."""
    return "\n".join(
        (
            _INTRO,
            _files(shipments, pairs, corpus, general),
            _labels(shipments),
            _faults(shipments, pairs),
        )
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(map(str, cells)) + " |\n" for cells in lines)


def _files(shipments: list[Entry], pairs: list[Pair], corpus: list[Row], general: list[Row]) -> str:
    return "## Files\n\nOne JSON object a line, UTF-8.\n\n" + _table(
        ("file", "lines", "fields", "what it is"),
        (
            (
                "`shipments.jsonl`",
                len(shipments),
                "id, received, channel, text, category, eta",
                "labelled messages, for fine-tuning and testing",
            ),
            (
                "`preferences.jsonl`",
                len(pairs),
                "id, received, text, chosen, rejected, fault",
                "a good and a bad answer to a message, for preference training",
            ),
            (
                "`corpus.jsonl`",
                len(corpus),
                "id, title, text",
                "the desk's handbook, rules and logs, for continued pretraining",
            ),
            (
                "`general.jsonl`",
                len(general),
                "id, instruction, output",
                "plain questions, to measure what fine-tuning forgets",
            ),
        ),
    )


def _labels(shipments: list[Entry]) -> str:
    kinds = by_kind(shipments)
    clean = [*kinds["good"], *kinds["unclear"]]
    test = [e for e in clean if e.message.received >= LATE_FROM]
    train = [e for e in clean if e.message.received < LATE_FROM]
    categories = Counter(e.message.category for e in clean)
    both = Counter((e.message.category, e.message.eta) for e in clean)
    etas = Counter(e.message.eta for e in clean)
    held_out = Counter(e.message.category for e in test)
    rows: list[tuple[object, ...]] = [
        (
            f"`{name}`",
            count,
            f"{100 * count / len(clean):.1f}%",
            held_out[name],
            *(both[name, eta] for eta in v.ETAS),
        )
        for name, count in categories.most_common()
    ]
    rows.append(("all", len(clean), "100.0%", len(test), *(etas[eta] for eta in v.ETAS)))
    unclear = [e for e in clean if e.kind == "unclear"]
    late = [e for e in test if v.LATE_CARRIER.lower() in e.message.text.lower()]
    return (
        "## Labels\n\n"
        f"`shipments.jsonl` covers {TRAIN_DAYS // 7 + TEST_DAYS // 7} weeks, from {FIRST:%Y-%m-%d} "
        f"to the end of 2026-09-13, sorted by time. Rows received from {stamp(LATE_FROM)} on are "
        f"held out for the test. Without the planted faults there are {len(train)} rows before "
        f"that moment and {len(test)} after it. A new carrier ({v.LATE_CARRIER}, {len(late)} "
        f"rows) and a new lane ({' to '.join(v.LATE_LANE)}) appear in the held-out weeks only.\n\n"
        + _table(("category", "rows", "share", "held out", *v.ETAS), rows)
        + f"\n{len(unclear)} of these rows fit two categories. Their label follows the desk's "
        f"rules, which `corpus.jsonl` states: {_ids(unclear)}.\n"
    )


def _faults(shipments: list[Entry], pairs: list[Pair]) -> str:
    kinds = by_kind(shipments)
    rows: list[tuple[object, ...]] = []
    where: list[tuple[object, ...]] = []
    for kind in MALFORMED:
        remedy = _AT_VALIDATE if kind in _RULE_BREAKERS else _MALFORMED
        rows.append((f"`{kind}`", "shipments.jsonl", len(kinds[kind]), remedy))
        where.append((f"`{kind}`", ", ".join(f"line {e.line}" for e in kinds[kind])))
    for kind, remedy in _PLANTED.items():
        rows.append((f"`{kind}`", "shipments.jsonl", len(kinds[kind]), remedy))
        where.append((f"`{kind}`", _ids(kinds[kind])))
    numbered = list(enumerate(pairs, start=1))
    for kind in ("leak", "email", "phone"):
        found = [(number, pair) for number, pair in numbered if pair.kind == kind]
        rows.append((f"`{kind}`", "preferences.jsonl", len(found), _PLANTED[kind]))
        named = (
            f"P-{number:04d}" + (f" of {pair.source.id}" if pair.source else "")
            for number, pair in found
        )
        where.append((f"`{kind}`", ", ".join(named)))
    malformed = sum(len(kinds[kind]) for kind in MALFORMED)
    return (
        "## Planted faults\n\n"
        "Real exports are never clean, so this one is not either. "
        f"{malformed} lines of `shipments.jsonl` break the format; the other faults sit in lines "
        "that are well formed. A copy differs from its source by one small edit, and the word "
        "3-shingles of the two have a Jaccard similarity of at least 0.8. Among all other messages "
        "no two reach 0.5. Addresses, telephone numbers, accounts and cards are made up, reserved "
        "for fiction, or published for testing.\n\n"
        + _table(("kind", "file", "count", "what the pipeline does with it"), rows)
        + "\nWhere they are (`A of B`: A was made from B):\n\n"
        + _table(("kind", "where"), where)
    )


def _ids(entries: list[Entry]) -> str:
    return ", ".join(e.id + (f" of {e.source.id}" if e.source else "") for e in entries)
