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
from tasks.evaluation.curves import Losses
from tasks.evaluation.rows import SPLITS, Row
from tasks.lineage.hashes import manifest
from tasks.model.engines import Likelihood
from tasks.params import Gates

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


def estimate(value: float | None, half: float = 0.05) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": round(value - half, 6), "high": round(value + half, 6)}


def comparison(right: str, right_value: float) -> dict[str, Any]:
    return {
        "left": "dpo",
        "right": right,
        "metric": "exact_match",
        "split": "test",
        "rows": 20,
        "left_value": 0.95,
        "right_value": right_value,
        "difference": estimate(round(0.95 - right_value, 6)),
        "left_only": 1,
        "right_only": 2,
        "p_value": 0.25,
        "resolvable": 0.21,
        "says": "inside the noise",
    }


def following(metric: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "base": estimate(0.4),
        "final": estimate(0.3),
        "difference": estimate(-0.1),
    }


def part(kind: str, name: str, says: str, change: float | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "rows": 10,
        "final": estimate(0.9),
        "other": estimate(0.8),
        "other_name": "classical",
        "difference": estimate(change),
        "p_value": None if change is None else 0.01,
        "p_holm": None if change is None else 0.02,
        "says": says,
    }


RECORDS = [
    {
        "stage": stage,
        "params": params,
        "inputs": {path: digest * 32 for path, digest in inputs.items()},
        "outputs": {path: {"md5": d * 32, "sha256": d * 64} for path, d in outputs.items()},
    }
    for stage, params, inputs, outputs in (
        (
            "base",
            {"base": {"source": "hub", "hub": {"repo": "org/tiny", "revision": "c" * 40}}},
            {"data/raw": "a", "requirements.lock": "0"},
            {"models/base": "b"},
        ),
        ("format", {}, {"data/raw": "a"}, {"data/formatted": "d", "data/rejected/x.jsonl": "e"}),
        (
            "merge",
            {"sft": {"method": "qlora"}},
            {"models/base": "b", "data/formatted": "d"},
            {"models/merged": "f"},
        ),
    )
]


@pytest.fixture()
def content() -> dict[str, Any]:
    """20 test rows, of which dpo gets all but one right, and 3 regression rows."""
    rows = [chat(f"{n:02}", "test", f"message {n}", label("ab"[n % 2])) for n in range(20)]
    rows += [chat(f"{n}", "regression", "2 + 2?", "four") for n in range(3)]
    texts: dict[str, Any] = {name: ["?" for _ in rows] for name in CANDIDATES}
    texts["dpo"] = [row.expected for row in rows]
    texts["dpo"][7] = label("a")
    texts["classical"] = [row.expected if row.split == "test" else None for row in rows]
    likelihoods = {name: [Likelihood(4.0, 8) for _ in rows] for name in CANDIDATES}
    wide = {"exact_match": 0.95, "json_valid": 1.0, "category_accuracy": 0.9, "perplexity": 4.5}
    candidates = {
        name: {
            split: {metric: estimate(value) for metric, value in wide.items()}
            for split in (SPLITS if name != "classical" else ("test",))
        }
        for name in ("base", "classical", "cpt", "sft", "dpo")
    }
    candidates["classical"]["test"]["exact_match"] = estimate(0.96, 0.04)
    return {
        "rows": rows,
        "texts": texts,
        "likelihoods": likelihoods,
        "document": {
            "task": "structured",
            "primary": "exact_match",
            "final": "dpo",
            "candidates": candidates,
            "comparisons": {"simpler": comparison("classical", 1.0), "champion": None},
            "forgetting": {
                "rows": 3,
                "perplexity_ratio": estimate(2.5),
                "following": following("rouge_l"),
                "form": following("form"),
            },
            "left_out": {},
            "lm_eval": {},
        },
        "slices": [
            part("class", "a", "worse", -0.2),
            part("class", "b", "inside the noise", 0.01),
            {
                **part("hard", "hard test", "too few rows", None),
                "final": estimate(None),
                "other": estimate(None),
            },
        ],
        "choices": {
            "classical": {"how": "TF-IDF of the words.", "training_rows": 40},
            "dpo": {"tokens_in": 64.2, "tokens_out": 9.0, "examples": 0},
            "base": {"prompt": "Answer with JSON.", "tried": {"as asked": 0.1}},
        },
        "gates": Gates(
            metrics={"exact_match": 0.9},
            simpler={"require": "not_worse", "margin": 0.2},
            champion=None,
            forgetting={"max_perplexity_ratio": None, "max_following_drop": 0.05},
        ),
        "contaminated": {"test": 1, "hard_test": 0, "mmlu.jsonl": 3},
        "answers": {"train": {"a": 20, "b": 20}, "test": {"a": 10, "b": 10}},
        "records": RECORDS,
        "costs": None,
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    rows, document = content["rows"], content["document"]
    sizes = {split: sum(row.is_in(split) for row in rows) for split in SPLITS}
    contaminated = {
        name: contamination.Contamination(entry["rows"], entry["judged"], entry["contaminated"])
        for name, entry in stated({**sizes, "mmlu.jsonl": 60}, content["contaminated"]).items()
    }
    for of in document["candidates"].values():
        for split in of:
            of[split]["contaminated_share"] = contaminated[split].share(0.95)
    beside = folder.with_name(f"{folder.name}-data")
    write_plots(beside)
    made = preparation.read(beside, write_metrics(beside))
    report.write(
        folder,
        rows=rows,
        texts=content["texts"],
        likelihoods=content["likelihoods"],
        document=document,
        slices=content["slices"],
        verdict=gates.judge(document, content["gates"], None),
        contaminated=contaminated,
        preparation=dataclasses.replace(made, classes=content["answers"]),
        losses={
            "cpt": Losses([], []),
            "sft": Losses([(1.0, 3.0), (2.0, 1.5)], [(2.0, 1.75)]),
            "dpo": Losses([(1.0, 0.69)], []),
        },
        choices=content["choices"],
        records=content["records"],
        confidence=0.95,
        costs=content["costs"],
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
    assert "Evaluation fail" in text
    assert (
        "Better than the best simpler method? Not shown: inside the noise. dpo reaches exact_match "
        "0.950, the best simpler method (classical, TF-IDF with logistic regression) 1.000, on 20 "
        "rows of the test. Difference -0.050, 95% interval -0.100 to 0.000, which holds zero"
    ) in text
    assert "Differences from about 0.210 on would show." in text
    assert "Better than the champion? Not compared. No champion is set" in text
    assert "Was the test seen in training? Yes, 5.0% of it." in text
    assert "Gates: 2 of 3 hold" in text
    assert "exact_match on test 0.95 is at least 0.9 holds" in text
    assert "following_drop on regression 0.1 lost of the base model's rouge_l of 0.4" in text
    assert "test , 20 rows; 1 of them (5.0%) stand in the training data" in text
    assert "Candidate exact_match json_valid category_accuracy perplexity base" in text
    assert "regression , 3 rows; whether they stand in the training data was not judged" in text
    assert "mmlu.jsonl 60 60 0.050" in text
    assert "sft loss 3.000 → 1.500 in 2 steps; validation (dots), best 1.750" in text
    assert "cpt is switched off sft loss" in text
    assert "share of its pairs of words that no training row has 0.220 0.410" in text


def test_what_is_simpler_and_how_sure_that_is(tmp_path: Path, content: dict[str, Any]) -> None:
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "classical TF-IDF of the words. 0.960 0.920 – 1.000 40 – no tokens" in text
    assert "base: the prompt that was used Answer with JSON." in text
    assert "0.950 0.900 – 1.000 40 0 64, 9" in text
    assert "classical the best simpler method, 20 rows of test 0.950 against 1.000 -0.050" in text
    assert "inside the noise p 0.250 1 2 0.210" in text
    assert "base → cpt 0 0 1.000" in text
    assert "sft → dpo 0 19 below 0.001" in text


def test_the_champion_on_the_old_test_and_on_the_new(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    champion = comparison("champion", 0.9)
    content["document"]["comparisons"]["champion"] = champion
    content["document"]["champion_by_source"] = {"arrived/x/<new>.jsonl": {**champion, "rows": 7}}
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "champion the champion, 20 rows of test 0.950 against 0.900" in text
    assert "the champion, 7 rows of test from arrived/x/<new>.jsonl 0.950" in text


def test_slices_and_classes(tmp_path: Path, content: dict[str, Any]) -> None:
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Worse in 1 of 2 slices: a (class)." in text
    assert "a 10 0.900 0.800 -0.200 (-0.250 to -0.150) worse p 0.020" in text
    assert "hard test 10 – – too few rows" in text
    assert "a b other value no value a 10 b 1 9" in text
    assert "category Rows classical dpo a 10" in text
    plot = (tmp_path / "r" / "plots" / "confusion.csv").read_text().splitlines()
    assert plot[0] == "actual,predicted"
    assert (len(plot), plot.count("b,a")) == (21, 1)
    assert json.loads((tmp_path / "r" / "slices.json").read_text()) == content["slices"]


def test_forgetting_and_errors(tmp_path: Path, content: dict[str, Any]) -> None:
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Perplexity 2.500 times the base model's; rouge_l -0.100." in text
    assert "form answers that at least look as the expected one does 0.400" in text
    assert "1 of 20 test answers are not exactly right" in text
    assert (
        'row 07 user message 7 expected {"category": "b"} dpo {"category": "a"} base ? '
        'classical {"category": "b"}'
    ) in text


def test_clock_readings_are_only_in_the_copy_for_mlflow(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    plain = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "This file is rebuilt bit for bit, so it holds no clock reading" in plain
    content["costs"] = {"dpo": {"latency_p95_seconds": 0.25, "watt": 3.0}, "base": {"watt": 2.0}}
    text = " ".join(Text(write(tmp_path / "copy", content)).seen)
    assert "Candidate seconds for 95% of the answers watt dpo 0.250 3.000 base – 2.000" in text


def test_the_lineage(tmp_path: Path, content: dict[str, Any]) -> None:
    page = write(tmp_path / "r", content)
    text = " ".join(Text(page).seen)
    assert "merge from base, format models/merged ffffffff" in text
    assert "merge models/base bbbbbbbb, data/formatted dddddddd models/merged ffffffff" in text
    assert page.count('role="img" aria-label="Lineage"') == 1
    content["records"] = []
    assert "No stage has left a record" in write(tmp_path / "none", content)


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
    content["slices"] = [part(ATTACK, ATTACK, "worse", -0.2)]
    content["choices"]["base"] = {"how": ATTACK, "prompt": ATTACK, "tried": {ATTACK: 0.5}}
    content["costs"] = {ATTACK: {ATTACK: 1.0}}
    content["records"] = [{**RECORDS[0], "stage": ATTACK, "inputs": {ATTACK: "a" * 32}}]
    of = content["document"]["candidates"]["dpo"]["test"]
    of[f"{ATTACK}_accuracy"] = estimate(0.5)
    page = write(tmp_path / "r", content)
    assert not Text(page).tags & {"script", "img"}
    assert page.count("&lt;script&gt;") >= 15
    card = (tmp_path / "r" / "model_card.md").read_text()
    text = card.split("---\n", 2)[2]
    for shown in (page, text):
        assert "<script" not in shown
        assert "<img" not in shown


def test_it_needs_nothing_else(tmp_path: Path, content: dict[str, Any]) -> None:
    page = write(tmp_path / "r", content).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//|@import|url\(|\bsrc=|\bhref=\"(?!#)", page)
    assert len(page) < 80_000
    targets = set(re.findall(r'href="#(\w+)"', page))
    assert targets <= set(re.findall(r'id="(\w+)"', page))


def test_a_missing_number_says_why(tmp_path: Path, content: dict[str, Any]) -> None:
    content["gates"] = content["gates"].model_copy(update={"metrics": {"f1": 0.5}})
    document = content["document"]
    document["comparisons"]["simpler"] = document["forgetting"] = None
    document["candidates"]["dpo"]["test"]["exact_match"] = estimate(None)
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "f1 on test f1 is not measured on test; measured are" in text
    assert "exact_match against the best simpler method on test" in text
    assert "not judged" in text


def test_what_was_left_out_and_what_cannot_fail(tmp_path: Path, content: dict[str, Any]) -> None:
    content["document"]["left_out"] = {"base_retrieval": f"there is nothing <b>{ATTACK}"}
    content["document"]["forgetting"]["following"] |= {
        "base": estimate(0.0, 0.0),
        "difference": estimate(0.0, 0.01),
    }
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "base_retrieval is left out: there is nothing <b>" in text
    assert "Gates: 2 of 3 hold, 1 cannot fail here" in text
    assert "has no more than that to lose cannot fail here" in text
    card = (tmp_path / "r" / "model_card.md").read_text()
    assert "- `base_retrieval` is left out: there is nothing" in card
    assert "of the gates 2 of 3 hold, 1 cannot fail here." in card
    assert "- cannot fail here: following" in card.replace("\\", "")
    assert "<script" not in card


def test_lm_eval_is_shown_without_general_rows(tmp_path: Path, content: dict[str, Any]) -> None:
    content["document"]["forgetting"] = None
    content["document"]["lm_eval"] = {"hellaswag": {"acc": {"base": 0.25, "dpo": 0.5}}}
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Benchmarks of lm-eval" in text
    assert "hellaswag Metric base dpo acc 0.250 0.500" in text


def test_no_gates(tmp_path: Path, content: dict[str, Any]) -> None:
    content["gates"] = Gates(
        metrics={},
        simpler=None,
        champion=None,
        forgetting={"max_perplexity_ratio": None, "max_following_drop": None},
    )
    assert "No gates are set in <code>evaluate.gates</code>" in write(tmp_path / "r", content)


def test_text_answers_without_classes(tmp_path: Path, content: dict[str, Any]) -> None:
    """A task without fields, classes, slices or regression rows still has its report."""
    content["rows"] = [chat(f"{n:02}", "test", "x", f"story {n}") for n in range(4)]
    for key in ("texts", "likelihoods"):
        content[key] = {name: every[:4] for name, every in content[key].items()}
    content["slices"], content["choices"] = [], {}
    content["document"]["forgetting"] = None
    for of in content["document"]["candidates"].values():
        of.pop("regression", None)
    text = " ".join(Text(write(tmp_path / "r", content)).seen)
    assert "Accuracy of each" not in text
    assert "regression ," not in text
    assert (tmp_path / "r" / "plots" / "confusion.csv").read_text() == "actual,predicted\n"


def test_the_card_is_one_that_hugging_face_reads(tmp_path: Path, content: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    write(tmp_path / "r", content)
    card = ModelCard.load(tmp_path / "r" / "model_card.md")
    assert card.data.base_model == "org/tiny"
    assert card.data.tags == ["tunetrail", "qlora"]
    assert card.data.license is None
    assert card.data.language is None
    results = {(one.dataset_split, one.metric_type): one for one in card.data.eval_results}
    assert results["test", "exact_match"].metric_value == 0.95
    assert results["test", "exact_match"].dataset_revision == "d" * 64
    assert "Not shown: inside the noise" in card.text
    assert "org/tiny at revision cccc" in card.text
    assert "- The gate on following_drop fails: 0.1 lost of" in card.text
    assert "tunetrail reproduce NAME@VERSION" in card.text


def test_the_card_tells_no_folder_of_this_machine(tmp_path: Path, content: dict[str, Any]) -> None:
    params = {"base": {"source": "local", "local": {"path": "/home/me/models/tiny"}}}
    content["records"] = [{**RECORDS[0], "params": params}]
    write(tmp_path / "r", content)
    card = (tmp_path / "r" / "model_card.md").read_text()
    assert "Base model: tiny, from a folder." in card
    assert "/home" not in card


def test_at_most_twelve_errors_and_long_texts_cut(tmp_path: Path, content: dict[str, Any]) -> None:
    content["texts"]["dpo"] = ["z" * 5000 for _ in content["rows"]]
    page = write(tmp_path / "r", content)
    assert "20 of 20 test answers are not exactly right; the first 12 are here" in page
    assert page.count("<article") == 12 + 3  # and of the general rows
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
        "answers": {
            "base": "Gruß\u2028\n?",
            "cpt": "?",
            "sft": "?",
            "dpo": label("a"),
            "classical": label("a"),
        },
        "nll": {"base": 4.0, "cpt": 4.0, "sft": 4.0, "dpo": 4.0},
        "tokens": 8,
    }
