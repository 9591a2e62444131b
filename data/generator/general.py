"""general.jsonl: plain questions with certain answers, to notice what fine-tuning forgets."""

from random import Random

from data.generator.faults import Row

Question = tuple[str, str]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

OPPOSITES = (
    "hot cold|big small|up down|open closed|day night|young old|fast slow|high low|full empty|"
    "wet dry|hard soft|early late|light dark|long short|left right|rich poor|near far|"
    "loud quiet|first last|inside outside|true false|heavy light|begin end"
)
PLURALS = (
    "cat cats|box boxes|city cities|child children|mouse mice|foot feet|tooth teeth|man men|"
    "woman women|leaf leaves|knife knives|baby babies|bus buses|goose geese|sheep sheep|book books"
)
CAPITALS = (
    "France Paris|Spain Madrid|Italy Rome|Germany Berlin|Norway Oslo|Sweden Stockholm|"
    "Denmark Copenhagen|Finland Helsinki|Poland Warsaw|Portugal Lisbon|Greece Athens|"
    "Ireland Dublin|Austria Vienna|Hungary Budapest|Japan Tokyo|China Beijing|Egypt Cairo|"
    "Canada Ottawa|Australia Canberra|Russia Moscow|Cuba Havana|Peru Lima|Belgium Brussels|"
    "Iceland Reykjavik"
)
PAST = (
    "go went|see saw|take took|eat ate|write wrote|run ran|give gave|come came|buy bought|"
    "sing sang|speak spoke|begin began"
)
COLOURS = (
    "fresh grass|green|a clear sky by day|blue|fresh snow|white|coal|black|a ripe banana|yellow|"
    "blood|red|a ripe tomato|red|milk|white|a lemon|yellow|a carrot|orange"
)
YOUNG = "dog puppy|cat kitten|cow calf|horse foal|sheep lamb|duck duckling|goose gosling"
SIDES = "triangle 3|square 4|pentagon 5|hexagon 6"
LEGS = "cow four|hen two|cat four|bird two|spider eight|bee six|horse four|snake no"
SPELL = ("cat", "dog", "house", "green", "water", "apple", "seven", "light", "table", "river")
SORT = ("pear apple plum", "dog ant cat", "moon sun star", "red blue green", "tea milk juice")


def make(rng: Random) -> list[Row]:
    """About two hundred questions, in a mixed order."""
    questions = [*_calendar(), *_language(), *_facts(), *_sums(rng), *_ordering(rng)]
    rng.shuffle(questions)
    return [
        {"id": f"G-{number:03d}", "instruction": instruction, "output": output}
        for number, (instruction, output) in enumerate(questions, start=1)
    ]


def _pairs(table: str) -> list[list[str]]:
    return [entry.split() for entry in table.split("|")]


def _calendar() -> list[Question]:
    after = [
        (f"What day comes after {day}?", DAYS[(n + 1) % len(DAYS)]) for n, day in enumerate(DAYS)
    ]
    before = [(f"What day comes before {day}?", DAYS[n - 1]) for n, day in enumerate(DAYS)]
    months = [
        (f"What month comes after {month}?", MONTHS[(n + 1) % len(MONTHS)])
        for n, month in enumerate(MONTHS)
    ]
    lengths = [
        (f"How many days does {month} have?", days)
        for month, days in (("April", "30"), ("June", "30"), ("July", "31"), ("March", "31"))
    ]
    return [
        *after,
        *before,
        *months,
        *lengths,
        ("How many days are in a week?", "7"),
        ("How many months are in a year?", "12"),
        ("How many hours are in a day?", "24"),
        ("How many minutes are in an hour?", "60"),
    ]


def _language() -> list[Question]:
    return [
        *((f"What is the opposite of {a}?", b) for a, b in _pairs(OPPOSITES)),
        *((f"What is the plural of {a}?", b) for a, b in _pairs(PLURALS)),
        *((f"What is the past tense of {a}?", b) for a, b in _pairs(PAST)),
        *((f"Spell the word {word} with dashes.", "-".join(word)) for word in SPELL),
        *((f"Write the number {n} as a word.", word) for n, word in enumerate(NUMBERS, start=1)),
    ]


def _facts() -> list[Question]:
    colours = COLOURS.split("|")
    return [
        *((f"What is the capital of {a}?", b) for a, b in _pairs(CAPITALS)),
        *(
            (f"What colour is {thing}?", colour)
            for thing, colour in zip(colours[::2], colours[1::2], strict=True)
        ),
        *((f"What is a young {a} called?", b) for a, b in _pairs(YOUNG)),
        *((f"How many sides does a {a} have?", b) for a, b in _pairs(SIDES)),
        *((f"How many legs does a {a} have?", b) for a, b in _pairs(LEGS)),
    ]


def _sums(rng: Random) -> list[Question]:
    pairs = rng.sample([(a, b) for a in range(2, 10) for b in range(2, 10)], 30)
    return [
        *((f"What is {a} + {b}?", str(a + b)) for a, b in pairs[:12]),
        *((f"What is {a + b} - {b}?", str(a)) for a, b in pairs[12:22]),
        *((f"What is {a} times {b}?", str(a * b)) for a, b in pairs[22:]),
    ]


def _ordering(rng: Random) -> list[Question]:
    questions = [
        (f"Put these words in alphabetical order: {words}", " ".join(sorted(words.split())))
        for words in SORT
    ]
    for _ in range(7):
        numbers = rng.sample(range(1, 30), 3)
        shown = " ".join(map(str, numbers))
        ordered = " ".join(map(str, sorted(numbers)))
        questions.append((f"Put these numbers in order, smallest first: {shown}", ordered))
    return questions
