"""preferences.jsonl: for each message the strict answer and one that a reviewer turned down."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random

from data.generator import faults
from data.generator import vocabulary as v
from data.generator.messages import LATE_FROM, Desk, Message, moment, quota
from data.generator.shipments import FIRST, TRAIN_DAYS, Entry, stamp

PAIRS = 400
LEAKS = 5
PERSONAL = ("email", "phone", "email", "phone", "email", "phone")
FAULTS = ("chatty", "wrong", "malformed")

_CHATTY = (
    "Sure! Here is the label: {answer}",
    "{answer} Let me know if you need anything else.",
    "I would file this one under {category}, and the ETA is {eta}.",
    "The answer is {answer}, because the message says so.",
    "This looks like {words} to me. ETA bucket: {eta}.",
    "Thanks for your message. {answer}",
    "Label:\n{answer}\nHope this helps!",
)


def answer(category: str, eta: str) -> str:
    """What the desk wants to read, and nothing else."""
    return faults.dumps({"category": category, "eta": eta})


@dataclass(frozen=True, slots=True)
class Pair:
    """A line to be written; `kind` and `source` are as in `shipments.Entry`."""

    message: Message
    rejected: str
    fault: str
    kind: str = "good"
    source: Entry | None = None

    def row(self, number: int) -> faults.Row:
        """The fields of the line, in the order in which they are written."""
        return {
            "id": f"P-{number:04d}",
            "received": stamp(self.message.received),
            "text": self.message.text,
            "chosen": answer(self.message.category, self.message.eta),
            "rejected": self.rejected,
            "fault": self.fault,
        }


def make(rng: Random, desk: Desk, shipments: list[Entry]) -> list[Pair]:
    """All pairs in the order of the file; all are from the training window."""
    messages = [(message, "good", None) for message in _fresh(rng, desk)]
    found = [*messages, *_personal(rng, desk), *_leaks(rng, shipments)]
    order = [FAULTS[number % len(FAULTS)] for number in range(PAIRS)]
    rng.shuffle(order)
    pairs = [
        Pair(message, _REJECTED[fault](message, rng), fault, kind, source)
        for (message, kind, source), fault in zip(found, order, strict=True)
    ]
    return sorted(pairs, key=lambda pair: pair.message.received)


Draft = tuple[Message, str, Entry | None]


def _fresh(rng: Random, desk: Desk) -> list[Message]:
    names = quota(PAIRS - LEAKS - len(PERSONAL))
    rng.shuffle(names)
    return [desk.message(moment(rng, FIRST, TRAIN_DAYS), name) for name in names]


def _personal(rng: Random, desk: Desk) -> list[Draft]:
    found: list[Draft] = []
    for number, kind in enumerate(PERSONAL):
        message = desk.message(moment(rng, FIRST, TRAIN_DAYS), rng.choice(quota(100)))
        text = faults.with_personal_data(message.text, kind, -1 - number, rng)
        found.append((replace(message, text=text), kind, None))
    return found


def _leaks(rng: Random, shipments: list[Entry]) -> list[Draft]:
    """Near-copies of held-out rows that `shipments.jsonl` does not leak already."""
    taken = [entry.source for entry in shipments if entry.kind == "leak"]
    pool = [
        entry
        for entry in shipments
        if entry.kind == "good"
        and entry.message.received >= LATE_FROM
        and faults.long_enough(entry.message.text)
        and entry not in taken
    ]
    found: list[Draft] = []
    for source in rng.sample(pool, LEAKS):
        text = faults.near_copy(source.message.text, rng)
        earlier = source.message.received - timedelta(weeks=rng.randrange(2, 9))
        found.append((replace(source.message, text=text, received=earlier), "leak", source))
    return found


def _chatty(message: Message, rng: Random) -> str:
    return rng.choice(_CHATTY).format(
        answer=answer(message.category, message.eta),
        category=message.category,
        words=message.category.replace("_", " "),
        eta=message.eta,
    )


def _wrong(message: Message, rng: Random) -> str:
    """Valid JSON with a label that a tired clerk might give."""
    if rng.random() < 0.5:
        other = rng.choice(v.BY_NAME[message.category].confused)
        return answer(other, message.eta)
    return answer(message.category, rng.choice([eta for eta in v.ETAS if eta != message.eta]))


def _malformed(message: Message, rng: Random) -> str:
    """The right label in a form that a strict parser refuses."""
    right = answer(message.category, message.eta)
    return rng.choice(
        (
            right.replace('"', "'"),
            right[:-1],
            right[:-1] + ",}",
            right.replace('"category"', '"type"'),
            right.replace('"eta"', '"eta_days"'),
            right.replace('"', ""),
        )
    )


_REJECTED: dict[str, Callable[[Message, Random], str]] = {
    "chatty": _chatty,
    "wrong": _wrong,
    "malformed": _malformed,
}
