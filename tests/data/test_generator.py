"""The shipped example data: it can be rebuilt, and it holds what its README says."""

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RAW = ROOT / "data" / "raw"
NAMES = ("README.md", "corpus.jsonl", "general.jsonl", "preferences.jsonl", "shipments.jsonl")
HELD_OUT = "2026-08-31"
PERSONAL = {
    "email": r"[\w.+-]+@(?:\w+\.)*example\.(?:com|org)\b",
    "phone": r"\+?[\d ()-]{10,}\d",
    "iban": r"\b[A-Z]{2}\d{2}[A-Z0-9 ]{10,}\d",
    "card": r"\b\d[\d -]{13,}\d\b",
}


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of three words; written again here, so that the generator is not its own judge."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


def jaccard(left: str, right: str) -> float:
    return len(shingles(left) & shingles(right)) / len(shingles(left) | shingles(right))


def tables() -> list[list[list[str]]]:
    """The README's tables, cell by cell, without head and rule."""
    page = (RAW / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [
        [
            [cell.strip(" `") for cell in line.strip("|").split("|")]
            for line in table.splitlines()[2:]
        ]
        for table in found
    ]


FILES, LABELS, FAULTS, PLACES = tables()


def lines(name: str) -> list[bytes]:
    return (RAW / name).read_bytes().split(b"\n")[:-1]


def places(kind: str, file: str) -> list[list[str]]:
    """Where the README says that faults of a kind are: `[line]`, `[id]` or `[id, source]`."""
    for (named, in_file, _, _), (_, where) in zip(FAULTS, PLACES, strict=True):
        if (named, in_file) == (kind, file):
            return [entry.removeprefix("line ").split(" of ") for entry in where.split(", ")]
    raise AssertionError(f"no {kind} in {file}")


@pytest.fixture(scope="module")
def shipments() -> dict[str, dict[str, Any]]:
    """The well-formed rows by id."""
    malformed = {int(line) for kind, where in PLACES for line in re.findall(r"line (\d+)", where)}
    rows = [json.loads(x) for n, x in enumerate(lines("shipments.jsonl"), 1) if n not in malformed]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def pairs() -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in lines("preferences.jsonl")]
    return {row["id"]: row for row in rows}


def test_the_generator_writes_the_committed_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.generator", "--out", str(tmp_path)]
    run(command, cwd=ROOT, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (RAW / name).read_bytes(), name


def test_the_files_are_small() -> None:
    assert sum((RAW / name).stat().st_size for name in NAMES) <= 2_000_000


def test_the_readme_counts_the_lines() -> None:
    stated = {name: int(count) for name, count, *_ in FILES}
    assert stated == {name: len(lines(name)) for name in NAMES if name.endswith(".jsonl")}


def test_rows_are_sorted_and_cover_ten_weeks(shipments: dict[str, dict[str, Any]]) -> None:
    times = [row["received"] for row in shipments.values()]
    assert times == sorted(times)
    assert (times[0][:10], times[-1][:10]) == ("2026-07-06", "2026-09-13")


def test_the_readme_counts_the_labels(shipments: dict[str, dict[str, Any]]) -> None:
    planted = {
        place[0]
        for kind in ("near_duplicate", "leak", "conflict", *PERSONAL)
        for place in places(kind, "shipments.jsonl")
    }
    clean = [row for name, row in shipments.items() if name not in planted]
    categories = Counter(row["category"] for row in clean)
    held_out = Counter(row["category"] for row in clean if row["received"] >= HELD_OUT)
    both = Counter((row["category"], row["eta"]) for row in clean)
    etas = ("today", "1-2d", "3-5d", "6-10d", "unknown")
    for name, rows, _, late, *buckets in LABELS[:-1]:
        assert (categories[name], held_out[name]) == (int(rows), int(late))
        assert [both[name, eta] for eta in etas] == [int(bucket) for bucket in buckets]
    assert len(clean) == int(LABELS[-1][1])
    assert held_out.total() == int(LABELS[-1][3])


def test_the_readme_counts_the_faults() -> None:
    for kind, file, count, _ in FAULTS:
        assert len(places(kind, file)) == int(count), (kind, file)


MALFORMED: dict[str, Callable[[bytes], bool]] = {
    "truncated_line": lambda line: line.startswith(b'{"id"') and not line.endswith(b"}"),
    "null_line": lambda line: json.loads(line) is None,
    "scalar_line": lambda line: isinstance(json.loads(line), int),
    "array_line": lambda line: isinstance(json.loads(line), list),
    "not_utf8": lambda line: b"\xf6" in line and b"\xc3" not in line,
    "missing_category": lambda line: "category" not in json.loads(line),
    "text_is_number": lambda line: isinstance(json.loads(line)["text"], int),
    "empty_text": lambda line: json.loads(line)["text"] == "",
    "unknown_category": lambda line: (
        json.loads(line)["category"] not in dict.fromkeys(name for name, *_ in LABELS)
    ),
    "unknown_eta": lambda line: json.loads(line)["eta"] == "2w",
    "repeated_key": lambda line: line.count(b'"eta":') == 2,
    "nul_in_text": lambda line: "\0" in json.loads(line)["text"],
    "extra_key": lambda line: len(json.loads(line)) == 7,
    "duplicate_id": lambda line: (
        lines("shipments.jsonl").index(line)
        != next(n for n, other in enumerate(lines("shipments.jsonl")) if other[:15] == line[:15])
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_line_is_where_the_readme_says(kind: str) -> None:
    found = lines("shipments.jsonl")
    for (line,) in places(kind, "shipments.jsonl"):
        assert MALFORMED[kind](found[int(line) - 1])


def test_near_duplicates_and_leaks_are_near_copies(
    shipments: dict[str, dict[str, Any]], pairs: dict[str, dict[str, Any]]
) -> None:
    planted = [
        ("near_duplicate", False, shipments, "shipments.jsonl"),
        ("leak", True, shipments, "shipments.jsonl"),
        ("leak", True, pairs, "preferences.jsonl"),
    ]
    for kind, held_out, rows, file in planted:
        for name, source in places(kind, file):
            copy, original = rows[name], shipments[source]
            assert copy["received"] < HELD_OUT
            assert (original["received"] >= HELD_OUT) is held_out
            assert copy["text"] != original["text"]
            assert jaccard(copy["text"], original["text"]) >= 0.8
            label = {key: original[key] for key in ("category", "eta")}
            assert label == (
                json.loads(copy["chosen"]) if file[0] == "p" else {k: copy[k] for k in label}
            )


def test_contradictions_differ_in_the_category_only(
    shipments: dict[str, dict[str, Any]],
) -> None:
    for name, source in places("conflict", "shipments.jsonl"):
        one, other = shipments[name], shipments[source]
        assert max(one["received"], other["received"]) < HELD_OUT
        assert (one["text"], one["eta"]) == (other["text"], other["eta"])
        assert one["category"] != other["category"]


def test_personal_data_is_where_the_readme_says_and_nowhere_else(
    shipments: dict[str, dict[str, Any]], pairs: dict[str, dict[str, Any]]
) -> None:
    for kind, pattern in PERSONAL.items():
        for rows, file in ((shipments, "shipments.jsonl"), (pairs, "preferences.jsonl")):
            if (kind, file) in {(row[0], row[1]) for row in FAULTS}:
                for (name,) in places(kind, file):
                    assert re.search(pattern, rows[name]["text"]), (kind, name)
    named = {place[0] for kind in PERSONAL for place in places(kind, "shipments.jsonl")}
    named |= {
        place[0] for kind in ("email", "phone") for place in places(kind, "preferences.jsonl")
    }
    others = [row["text"] for name, row in (shipments | pairs).items() if name not in named]
    others += [json.loads(line)["text"] for line in lines("corpus.jsonl")]
    anything = re.compile("|".join((r"@", *list(PERSONAL.values())[1:])))
    assert not [text for text in others if anything.search(text)]


def test_accounts_and_cards_pass_their_checksums(shipments: dict[str, dict[str, Any]]) -> None:
    for (name,) in places("iban", "shipments.jsonl"):
        found = re.search(PERSONAL["iban"], shipments[name]["text"], re.IGNORECASE)
        assert found
        account = found[0].replace(" ", "")
        digits = "".join(str(int(char, 36)) for char in account[4:] + account[:4])
        assert int(digits) % 97 == 1
    for (name,) in places("card", "shipments.jsonl"):
        found = re.search(PERSONAL["card"], shipments[name]["text"])
        assert found
        numbers = [int(char) for char in reversed(found[0]) if char.isdigit()]
        doubled = [sum(divmod(2 * number, 10)) for number in numbers[1::2]]
        assert (sum(numbers[::2]) + sum(doubled)) % 10 == 0


def test_no_two_texts_are_close_unless_planted(
    shipments: dict[str, dict[str, Any]], pairs: dict[str, dict[str, Any]]
) -> None:
    copies = {
        place[0]
        for file, kinds in (
            ("shipments.jsonl", ("near_duplicate", "leak", "conflict")),
            ("preferences.jsonl", ("leak",)),
        )
        for kind in kinds
        for place in places(kind, file)
    }
    texts = [row["text"] for name, row in (shipments | pairs).items() if name not in copies]
    for line in lines("corpus.jsonl"):
        texts += re.findall(r"^Message: (.*)$", json.loads(line)["text"], re.MULTILINE)
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: list[int] = []
    for number, text in enumerate(texts):
        own = shingles(text)
        shared = Counter(holder for shingle in own for holder in holders[shingle])
        for holder, count in shared.items():
            together = len(own) + sizes[holder] - count
            # Notes in the corpus may repeat each other; a row must be unlike every other message.
            if holder < len(shipments) + len(pairs) - len(copies):
                assert count / together < 0.6, (texts[holder], text)
        for shingle in own:
            holders[shingle].append(number)
        sizes.append(len(own))


def test_preferences_have_strict_answers_and_three_kinds_of_faults(
    pairs: dict[str, dict[str, Any]],
) -> None:
    faults = Counter(row["fault"] for row in pairs.values())
    assert set(faults) == {"chatty", "wrong", "malformed"}
    assert min(faults.values()) >= len(pairs) // 3
    for row in pairs.values():
        assert row["received"] < HELD_OUT
        chosen = json.loads(row["chosen"])
        assert list(chosen) == ["category", "eta"]
        rejected = parsed(row["rejected"])
        assert rejected != chosen
        assert (row["fault"] == "wrong") == (rejected is not None and set(rejected) == set(chosen))


def parsed(text: str) -> dict[str, str] | None:
    try:
        answer: dict[str, str] = json.loads(text)
    except json.JSONDecodeError:
        return None
    return answer


def test_general_questions_are_asked_once() -> None:
    asked = [json.loads(line)["instruction"] for line in lines("general.jsonl")]
    assert len(set(asked)) == len(asked)
