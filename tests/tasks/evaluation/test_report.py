"""The report: whole, harmless, and the same bytes from the same numbers."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prepared_data import contamination as stated
from prepared_data import write_metrics, write_plots

from tasks.evaluation import contamination, gates, preparation, report
from tasks.evaluation.metrics import Answered, measure
from tasks.evaluation.rows import SPLITS, Row
from tasks.lineage.hashes import manifest
from tasks.model.engines import Likelihood

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CANDIDATES = ("base", "cpt", "sft", "dpo")


def label(category: str) -> str:
    return json.dumps({"category": category})


def chat(id: str, split: str, prompt: str, expected: str) -> Row:
    messages = [
        {"role": "system", "content": "Answer with JSON."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": expected},
    ]
    return Row("s.jsonl", id, split, split == "test" and id < "05", messages)


@pytest.fixture()
def content() -> dict[str, Any]:
    """20 test rows, of which dpo gets all but one right, and 3 regression rows."""
    rows = [chat(f"{n:02}", "test", f"message {n}", label("ab"[n % 2])) for n in range(20)]
    rows += [chat(f"{n}", "regression", "2 + 2?", "four") for n in range(3)]
    texts = {name: ["?" for _ in rows] for name in CANDIDATES}
    texts["dpo"] = [row.expected for row in rows]
    texts["dpo"][7] = label("a")
    likelihoods = {name: [Likelihood(4.0, 8) for _ in rows] for name in CANDIDATES}
    return {
        "rows": rows,
        "texts": texts,
        "likelihoods": likelihoods,
        "limits": {"exact_match": 0.9},
        "contaminated": {"test": 1, "hard_test": 0, "mmlu.jsonl": 3},
        "answers": {"train": {"a": 20, "b": 20}, "test": {"a": 10, "b": 10}},
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    rows, texts, likelihoods = (content[key] for key in ("rows", "texts", "likelihoods"))

    def answered(name: str, split: str) -> list[Answered]:
        every = zip(rows, texts[name], likelihoods[name], strict=True)
        return [
            Answered(row.expected, text, *score) for row, text, score in every if row.is_in(split)
        ]

    sizes = {split: sum(row.is_in(split) for row in rows) for split in SPLITS}
    contaminated = {
        name: contamination.Contamination(entry["rows"], entry["judged"], entry["contaminated"])
        for name, entry in stated({**sizes, "mmlu.jsonl": 60}, content["contaminated"]).items()
    }
    measured = {
        name: {
            split: {
                **measure(answered(name, split), 0.95, 1),
                "contaminated_share": contaminated[split].share(0.95),
            }
            for split in SPLITS
            if sizes[split]
        }
        for name in texts
    }
    measured = {
        name: {split: of.get(split, {}) for split in SPLITS} for name, of in measured.items()
    }
    beside = folder.with_name(f"{folder.name}-data")
    write_plots(beside)
    made = preparation.read(beside, write_metrics(beside))
    made = dataclasses.replace(made, classes=content["answers"])
    report.write(
        folder,
        rows=rows,
        texts=texts,
        likelihoods=likelihoods,
        measured=measured,
        verdict=gates.judge("dpo", "test", measured["dpo"]["test"], content["limits"]),
        contaminated=contaminated,
        preparation=made,
        losses={"cpt": [], "sft": [(1.0, 3.0), (2.0, 1.5)], "dpo": [(1.0, 0.69)]},
        confidence=0.95,
    )
    return (folder / "index.html").read_text(encoding="utf-8")


class Text(HTMLParser):
    """The text of a page; fails at an element that is not closed."""

    VOID = frozenset({"meta", "line", "polyline", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.seen.append(" ".join(data.split()).replace("\u200b", ""))


def test_what_it_tells(tmp_path: Path, content: dict[str, Any]) -> None:
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Evaluation pass" in text
    assert (
        "dpo , holds 1 of 1 gates on 20 test rows; 1 of them (5.0%) stand in the training data."
    ) in text
    assert "exact_match 0.950 at least 0.900 holds" in text
    assert "test , 20 rows; 1 of them (5.0%) stand in the training data" in text
    assert "contaminated_share 0.050 0.009 – 0.236 0.050" in text
    assert "hard_test , 5 rows; 0 of them (0.0%) stand" in text
    assert "regression , 3 rows; whether they stand in the training data was not judged" in text
    assert "contaminated_share not judged not judged not judged not judged" in text
    assert "mmlu.jsonl 60 60 0.050" in text
    assert "base → cpt 0 0 1.000" in text
    assert "sft → dpo 0 19 < 0.001" in text
    assert "Accuracy by category category Rows sft dpo a 10" in text
    assert "category a b other value no value a 10 b 1 9" in text
    assert "cpt is switched off sft loss 3.000 → 1.500 in 2 steps" in text
    assert "1 of 20 test answers are not exactly right" in text
    assert 'row 07 user message 7 expected {"category": "b"} dpo {"category": "a"} base ?' in text


def test_the_hard_test_beside_the_test(tmp_path: Path, content: dict[str, Any]) -> None:
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "The hard test" in text
    assert "base test base hard_test dpo test dpo hard_test category_accuracy 0.000" in text
    assert "share of its pairs of words that no training row has 0.220 0.410" in text
    assert "tokens 31.500 44.000" in text


def test_the_data(tmp_path: Path, content: dict[str, Any]) -> None:
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "ingest 70 66 4 validate 66 60 6 format 60 52 8" in text
    assert "ingest duplicate_id 2 ingest nul 2 validate contradiction 4" in text
    assert "consistency 1.000 clusters 0.875 class balance not judged" in text
    assert "There are few training chats" in text
    assert "2 held-out rows have too few words to be judged so" in text
    assert "Split rows train 40 test 8 hard_test 2" in text
    assert "Near-duplicates in the cluster rows 1 45 86.5% 2 4 7.7%" in text
    assert "train 40 rows" in text
    assert "1 to 16 tokens: 30 rows" in text
    assert "Answer train test a 20 50.0% 10 50.0% b 20 50.0% 10 50.0%" in text


def test_many_answers_unfold(tmp_path: Path, content: dict[str, Any]) -> None:
    content["answers"] = {"train": {f"label {n}": 31 - n for n in range(31)}}
    page = write(tmp_path / "r", content)
    assert "<summary>19 more</summary>" in page
    assert "label 30" in page


def test_two_runs_write_the_same_bytes(tmp_path: Path, content: dict[str, Any]) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, content)
    assert manifest(tmp_path / "one") == manifest(tmp_path / "two")


def test_text_of_rows_and_models_stays_text(tmp_path: Path, content: dict[str, Any]) -> None:
    content["rows"][7] = chat(ATTACK, "test", ATTACK, label(ATTACK))
    content["rows"][9] = chat("09", "test", "x", label(ATTACK))
    content["texts"]["dpo"][7] = content["texts"]["base"][7] = ATTACK
    content["answers"] = {"train": {ATTACK: 3}}
    page = write(tmp_path / "r", content)
    assert not Text(page).tags & {"script", "img"}
    assert page.count("&lt;script&gt;") >= 6  # id, prompt, expected, answers, classes
    assert "<script" not in page
    assert "<img" not in page


def test_it_needs_nothing_else(tmp_path: Path, content: dict[str, Any]) -> None:
    page = write(tmp_path / "r", content)
    assert not re.search(r"https?:|//|@import|url\(|\bsrc=|\bhref=", page)
    assert len(page) < 60_000


def test_a_gate_without_a_number_says_why(tmp_path: Path, content: dict[str, Any]) -> None:
    content["limits"] = {"f1": 0.5}
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Evaluation fail" in text
    assert (
        "f1 – at least 0.500 fails f1 is not measured on test; measured are category_accuracy"
        in text
    )


def test_no_gates(tmp_path: Path, content: dict[str, Any]) -> None:
    content["limits"] = {}
    assert "No gates are set in <code>evaluate.gates</code>" in write(tmp_path / "r", content)


def test_text_answers_without_classes(tmp_path: Path, content: dict[str, Any]) -> None:
    """A task without fields or classes, and without regression rows, still has its report."""
    content["rows"] = [chat(f"{n:02}", "test", "x", f"story {n}") for n in range(4)]
    for key in ("texts", "likelihoods"):
        content[key] = {name: every[:4] for name, every in content[key].items()}
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Accuracy by" not in text
    assert "regression ," not in text
    assert "4 of 4 test answers are not exactly right" in text


def test_at_most_twelve_errors_and_long_texts_cut(tmp_path: Path, content: dict[str, Any]) -> None:
    content["texts"]["dpo"] = ["z" * 5000 for _ in content["rows"]]
    page = write(tmp_path / "r", content)
    assert "20 of 20 test answers are not exactly right; the first 12 are shown" in page
    assert page.count("<article") == 12
    assert "z" * 601 not in page


def test_predictions_hold_everything(tmp_path: Path, content: dict[str, Any]) -> None:
    content["texts"]["base"][0] = "Gruß\u2028\n\ud800".encode("utf-8", "replace").decode()
    write(tmp_path / "r", content)
    lines = (tmp_path / "r" / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    assert len(records) == len(content["rows"])
    assert records[0] == {
        "id": "00",
        "source": "s.jsonl",
        "split": "test",
        "hard": True,
        "prompt": content["rows"][0].prompt,
        "expected": label("a"),
        "answers": {"base": "Gruß\u2028\n?", "cpt": "?", "sft": "?", "dpo": label("a")},
        "nll": {"base": 4.0, "cpt": 4.0, "sft": 4.0, "dpo": 4.0},
        "tokens": 8,
    }
