"""corpus.jsonl: what the desk has written for itself, for continued pretraining."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from random import Random

from data.generator import handbook, preferences
from data.generator import vocabulary as v
from data.generator.faults import Row
from data.generator.messages import Desk, Message, expand, moment, quota, scene

SPRING = datetime(2026, 4, 6)
SPRING_DAYS = 84
SHIFT_LOGS, LOG_MESSAGES, LOG_NOTES = 30, 8, 38
SUMMARIES, TICKETS = 16, 7
COACHING_CASES = 6

Document = tuple[str, str]


def make(rng: Random, desk: Desk) -> list[Row]:
    """All documents, handbook first; nothing in them is dated inside the shipments' window."""
    documents = [
        *_handbook(rng),
        *_eta_pages(rng),
        *_rules(rng, desk),
        *_glossary(rng),
        *_carriers(rng, desk),
        *_coaching(rng, desk),
        *_summaries(rng, desk),
        *_shift_logs(rng, desk),
    ]
    return [
        {"id": f"C-{number:04d}", "title": title, "text": text}
        for number, (title, text) in enumerate(documents, start=1)
    ]


def _spring(rng: Random) -> datetime:
    return moment(rng, SPRING, SPRING_DAYS)


def _one(rng: Random, template: str) -> str:
    """A template settled with facts of its own."""
    return expand(template, rng, scene(rng, _spring(rng)))


def _listed(quoted: list[str]) -> str:
    return ", ".join(f'"{item}"' for item in quoted[:-1]) + f' and "{quoted[-1]}"'


def _handbook(rng: Random) -> list[Document]:
    documents = [("How the sorter answers", "\n\n".join(handbook.ANSWER_FORMAT))]
    for name, page in handbook.PAGES.items():
        category = v.BY_NAME[name]
        examples = [_one(rng, cue) for cue in category.cues]
        text = "\n\n".join(
            (
                f"{page.meaning} The category is called {name}.",
                f"In messages it reads like this: {_listed(examples)}. Each of these alone is "
                f"enough for {name}.",
                page.limits,
                f"Words that mislead: {_listed(list(category.clear))} use the words of {name} "
                "and do not mean it.",
                page.action,
                "\n".join(f"{_one(rng, cue)} -> {name}" for cue in category.cues),
            )
        )
        documents.append((f"Handbook: {page.title}", text))
    return documents


def _eta_pages(rng: Random) -> list[Document]:
    documents = []
    for eta, prose in handbook.ETA_PAGES.items():
        phrases = v.UNKNOWN if eta == "unknown" else v.WHEN[eta]
        spoken = list(dict.fromkeys(_one(rng, phrase) for phrase in phrases for _ in range(3)))
        leads = [
            f"{_one(rng, rng.choice(v.WHEN_LEADS))} {phrase}" if eta != "unknown" else phrase
            for phrase in spoken
        ]
        text = "\n\n".join(
            (
                prose,
                "\n".join(f'"{phrase}" counts as {eta}.' for phrase in spoken),
                "\n".join(f"{phrase} -> {eta}" for phrase in leads),
            )
        )
        documents.append((f"ETA bucket {eta}", text))
    past = dict.fromkeys(_one(rng, phrase) for phrase in v.PAST for _ in range(2))
    both = [
        f"{_one(rng, rng.choice(v.PAST))}, {_one(rng, rng.choice(v.WHEN_LEADS))} "
        f"{_one(rng, rng.choice(v.WHEN[eta]))} -> {eta}"
        for eta in v.WHEN
        for _ in range(3)
    ]
    lines = [f"{phrase} -> unknown, unless more is said" for phrase in past]
    documents.append(
        ("Dates in the past", "\n\n".join((handbook.PAST_DATES, "\n".join(lines), "\n".join(both))))
    )
    return documents


def _rules(rng: Random, desk: Desk) -> list[Document]:
    documents = []
    for rule in v.RULES:
        reason = handbook.RULE_REASONS[rule.first, rule.second]
        examples = [desk.unclear(_spring(rng), rule) for _ in range(6)]
        text = "\n\n".join(
            (
                f"Some messages fit both {rule.first} and {rule.second}. The desk files them as "
                f"{rule.winner}. {reason}",
                f"Examples. If you read that {examples[0].happened}, the label is {rule.winner}. "
                f"If you read that {examples[1].happened}, the label is {rule.winner} again.",
                "\n".join(_labelled(example) for example in examples),
                f"The order of the two halves does not matter. {rule.first} together with "
                f"{rule.second} is always {rule.winner}.",
            )
        )
        documents.append((f"Unclear case: {rule.first} or {rule.second}", text))
    return documents


def _glossary(rng: Random) -> list[Document]:
    short = "\n".join(
        f'"{abbreviation}" is short for {word}.' for word, abbreviation in v.ABBREVIATIONS.items()
    )
    slips = "\n".join(f'"{slip}" is a slip for {word}.' for word, slip in v.MISSPELT.items())
    return [
        (
            "Glossary: abbreviations",
            "Drivers and scanners write short. These are the abbreviations that the desk knows.\n\n"
            + short,
        ),
        (
            "Glossary: slips of the keyboard",
            "Nobody corrects a message before it is filed. These slips come up every week and "
            "change nothing about the label.\n\n" + slips,
        ),
    ]


_CARRIER_HABITS = (
    "Their drivers write in lower case and leave out full stops.",
    "They send one message a stop and never two, so read it to the end.",
    "Their night desk answers in ten minutes, their day desk in an hour.",
    "They give a weekday and the number of days in brackets; trust the number.",
    "They say tmrw for everything that is not today, and they usually keep to it.",
    "They write no date yet when they have not asked, so ask them.",
    "They confirm a new collection by a call and not by a message.",
    "They use the portal for damage and the telephone for the rest.",
)


def _carriers(rng: Random, desk: Desk) -> list[Document]:
    """One page a carrier; the carrier that is new in the held-out weeks has none."""
    documents = []
    for carrier, habit in zip(v.CARRIERS, _CARRIER_HABITS, strict=True):
        first, second = (" to ".join(lane) for lane in rng.sample(v.LANES, 2))
        known = [desk.message(_spring(rng), name) for name in rng.sample(quota(60), 5)]
        said = "\n".join(
            f'"{_capital(m.happened)}" is their way to report {m.category}.' for m in known
        )
        text = (
            f"{carrier} works for us on {first} and on {second}. {habit} Messages from "
            f"{carrier} are filed like all others; the name of the carrier never decides the "
            f"category.\n\n{said}\n\n" + "\n".join(_labelled(m) for m in known)
        )
        documents.append((f"Carrier notes: {carrier}", text))
    return documents


def _coaching(rng: Random, desk: Desk) -> list[Document]:
    documents = []
    for category in v.CATEGORIES:
        cases = [desk.message(_spring(rng), category.name) for _ in range(COACHING_CASES)]
        text = "\n\n".join(
            f"Message: {m.text}\nWhat happened? {_capital(m.happened)}. That is {m.category}.\n"
            f"When is it over? {_bucket(m)}\nLabel:\n{preferences.answer(m.category, m.eta)}"
            for m in cases
        )
        documents.append((f"Coaching notes: {category.name}", text))
    return documents


_SUMMARY_FORMS: tuple[Callable[[str, Message], str], ...] = (
    lambda ref, m: (
        f'Ticket {ref}. The message said "{m.happened}", so we filed it as {m.category}. '
        f"{_bucket(m)}"
    ),
    lambda ref, m: (
        f"{m.category}, ticket {ref}. {_capital(m.happened)}, wrote the {_writer(m)}. {_bucket(m)}"
    ),
    lambda ref, m: (
        f"Ticket {ref} came from the {_writer(m)}: {m.happened}. Whatever reads like this goes "
        f"down as {m.category}. {_bucket(m)}"
    ),
    lambda ref, m: (
        f"In ticket {ref} we first had another label, but {m.happened} means {m.category}. "
        f"{_bucket(m)}"
    ),
)


def _summaries(rng: Random, desk: Desk) -> list[Document]:
    documents = []
    for number in range(1, SUMMARIES + 1):
        names = rng.sample(quota(60), TICKETS)
        paragraphs = []
        for name in names:
            m = desk.message(_spring(rng), name)
            told = rng.choice(_SUMMARY_FORMS)(str(rng.randrange(1000, 9999)), m)
            outcome = rng.choice(handbook.PAGES[name].outcomes)
            label = preferences.answer(m.category, m.eta)
            paragraphs.append(f"{told} {outcome}\nLabel:\n{label}")
        documents.append((f"Past tickets, sheet {number}", "\n\n".join(paragraphs)))
    return documents


def _shift_logs(rng: Random, desk: Desk) -> list[Document]:
    documents = []
    days = sorted(rng.sample(range(SPRING_DAYS), SHIFT_LOGS))
    for offset in days:
        day = SPRING + timedelta(days=offset)
        noon = day + timedelta(hours=12)
        messages = [desk.message(noon, name) for name in rng.sample(quota(120), LOG_MESSAGES - 1)]
        messages.append(desk.unclear(noon, rng.choice(v.RULES)))
        rng.shuffle(messages)
        # Rare categories need more practice than their share of the messages gives them.
        notes = [desk.note(noon, rng.choice(v.CATEGORIES).name) for _ in range(LOG_NOTES)]
        shift = rng.choice(("early", "late", "night"))
        text = (
            f"Log of the {shift} shift on {_spoken(day.date())}. {len(messages)} messages kept "
            "as examples.\n\n"
            + "\n".join(_labelled(m) for m in messages)
            + "\n\nThe others in short:\n\n"
            + "\n".join(dict.fromkeys(_labelled(m) for m in notes))
            + f"\n\nHandover: {_handover(rng, messages)}"
        )
        documents.append((f"Shift log {day:%Y-%m-%d}", text))
    return documents


def _handover(rng: Random, messages: list[Message]) -> str:
    """What one shift tells the next, true of these messages."""
    undated = sum(m.eta == "unknown" for m in messages)
    commonest = max(v.BY_NAME, key=[m.category for m in messages].count)
    urgent = sorted({m.category for m in messages if m.eta == "today"})
    notes = [
        f"most of the shift went to {commonest}.",
        f"{undated} of these have no date yet; ask the carriers again in the morning.",
        f"still due today: {', '.join(urgent)}." if urgent else "nothing else is due today.",
        f"the last message was {messages[-1].category} and is not answered yet.",
    ]
    return " ".join(_capital(note) for note in rng.sample(notes, 2))


def _labelled(message: Message) -> str:
    return f"Message: {message.text}\nLabel:\n{preferences.answer(message.category, message.eta)}"


def _bucket(message: Message) -> str:
    """Why the ETA bucket is what it is, in a sentence."""
    if not message.ending:
        return "No date was mentioned, so the bucket is unknown."
    return f'"{_capital(message.ending)}" counts as {message.eta}.'


def _writer(message: Message) -> str:
    return {
        "email": "customer",
        "driver": "driver",
        "scanner": "scanner at the dock",
        "portal": "customer in the portal",
    }[message.channel]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _spoken(day: date) -> str:
    """A date in words; `strftime` would ask the locale."""
    month = ("January", "February", "March", "April", "May", "June")[day.month - 1]
    return f"{_WEEKDAYS[day.weekday()]} {day.day} {month}"
