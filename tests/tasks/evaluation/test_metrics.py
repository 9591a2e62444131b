"""Metrics on answers whose score is known, and against the libraries that define them."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation import metrics
from tasks.evaluation.metrics import Answered

DELAY, HOLD = '{"category":"delay","eta":"1-2d"}', '{"category":"hold","eta":"unknown"}'
TEXTS = [
    ("The cat sat on the mat.", "The cat sat on a mat."),
    ("Your parcel is held by customs, we'll let you know.", "Held by customs; you will be told."),
    ("It arrives on 3 September.", ""),
    ("Please send the invoice again", "please send the INVOICE again!"),
    ("no", "The answer to your question is no, since it left yesterday."),
]


def answered(rows: list[tuple[str, str]]) -> list[Answered]:
    return [Answered(expected, answer, 2.0, 4) for expected, answer in rows]


def values(rows: list[tuple[str, str]], task: Any = "structured", **more: Any) -> dict[str, Any]:
    found = metrics.measure(answered(rows), task, 0.95, 1, **more)
    json.dumps(found, allow_nan=False)
    for estimate in found.values():
        if estimate["value"] is not None:
            assert estimate["low"] <= estimate["high"]
    return {name: item["value"] for name, item in found.items()}


def test_structured_answers() -> None:
    found = values(
        [
            (DELAY, '{"eta": "1-2d", "category": "delay"}'),
            (DELAY, '{"category":"delay","eta":"today"}'),
            (DELAY, '{"category":"delay","category":"delay","eta":"1-2d"}'),
            (HOLD, '{"category":"hold"'),
        ]
    )
    assert list(found) == [
        "category_accuracy",
        "eta_accuracy",
        "json_valid",
        "exact_match",
        "perplexity",
    ]
    assert found == {
        "category_accuracy": 0.5,
        "eta_accuracy": 0.25,
        "json_valid": 0.5,
        "exact_match": 0.25,
        "perplexity": 1.648721,
    }


def test_a_schema() -> None:
    schema = {"type": "object", "required": ["eta"], "properties": {"eta": {"enum": ["1-2d"]}}}
    found = values([(DELAY, DELAY), (DELAY, HOLD), (DELAY, "{}"), (DELAY, "no")], schema=schema)
    assert (found["json_valid"], found["schema_valid"]) == (0.75, 0.25)


def test_a_field_counts_only_where_it_is_expected() -> None:
    rows = [('{"a":1}', '{"a":1}'), ('{"b":1}', '{"a":1}'), ("x", "y")]
    found = values(rows)
    assert (found["a_accuracy"], found["b_accuracy"]) == (1.0, 0.0)
    first, *others = metrics.outcomes("a_accuracy", answered(rows))
    assert first == 1.0
    assert all(map(math.isnan, others))


def test_nested_values_are_one_field() -> None:
    row = '{"lines":[{"sku":"a","n":2}]}'
    assert values([(row, '{"lines": [{"n": 2, "sku": "a"}]}')])["lines_accuracy"] == 1.0


@pytest.mark.parametrize("task", ["classification", "structured", "generation"])
def test_no_rows_no_metrics(task: Any) -> None:
    assert metrics.measure([], task, 0.95, 1) == {}


def test_no_likelihoods_no_perplexity() -> None:
    rows = [Answered("a", "a", None, 0), Answered("b", "b", None, 3)]
    assert "perplexity" not in metrics.measure(rows, "classification", 0.95, 1)


@pytest.mark.parametrize("nll", [math.nan, math.inf, 1e6])
def test_a_perplexity_that_is_no_number_is_not_measured(nll: float) -> None:
    rows = [Answered("a", "a", nll, 1), Answered("b", "b", 1.0, 1)]
    found = metrics.measure(rows, "classification", 0.95, 1)["perplexity"]
    assert found == {"value": None, "low": None, "high": None}


def test_classes_as_scikit_learn_has_them() -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    generator = random.Random(5)
    names = ["a", "b", "c c", "ä"]
    asked = generator.choices(names, [5, 3, 2, 1], k=120)
    given = [
        name if generator.random() < 0.7 else generator.choice([*names, "?"]) for name in asked
    ]
    found = values(list(zip(asked, given, strict=True)), "classification")
    assert found["accuracy"] == round(accuracy_score(asked, given), 6)
    labels = sorted(set(asked))
    for average in ("macro", "micro"):
        theirs = precision_recall_fscore_support(
            asked, given, labels=labels, average=average, zero_division=0
        )
        ours = [found[f"{average}_{part}"] for part in metrics.PARTS]
        assert ours == [round(float(number), 6) for number in theirs[:3]]


def test_a_class_that_is_never_answered_counts_as_0() -> None:
    found = values([("a", "a"), ("b", "a")], "classification")
    assert (found["macro_precision"], found["macro_recall"], found["macro_f1"]) == (
        0.25,
        0.5,
        0.333333,
    )


def test_one_class_only() -> None:
    found = values([("a", "a")] * 3 + [("a", "b")], "classification")
    assert found["accuracy"] == found["macro_recall"] == found["micro_recall"] == 0.75
    assert found["macro_precision"] == found["micro_precision"] == 1.0
    found = values([("a", "x\ny"), ("a", "")], "classification")
    assert found["macro_f1"] == found["accuracy"] == 0


def test_rouge_l_as_rouge_score_has_it() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    theirs = [scorer.score(expected, given)["rougeL"].fmeasure for expected, given in TEXTS]
    assert metrics.outcomes("rouge_l", answered(TEXTS)) == theirs
    assert values(TEXTS, "generation")["rouge_l"] == round(sum(theirs) / len(theirs), 6)


def test_bleu_and_chrf_as_sacrebleu_has_them() -> None:
    import sacrebleu

    given, expected = [answer for _, answer in TEXTS], [[text for text, _ in TEXTS]]
    found = values(TEXTS, "generation")
    assert found["bleu"] == round(sacrebleu.corpus_bleu(given, expected).score / 100, 6)
    assert found["chrf"] == round(sacrebleu.corpus_chrf(given, expected).score / 100, 6)
    assert list(found) == ["rouge_l", "bleu", "chrf", "exact_match", "perplexity"]


@pytest.mark.parametrize(
    "text",
    [
        "Посылка задержана на таможне",
        "Grüße, Straße 5 naïve",
        "荷物は税関で止まっています",
        "พัสดุถูกกัก",
    ],
)
def test_text_in_any_script_has_words(text: str) -> None:
    """rouge-score's own tokenizer drops all but a to z and digits, and finds no word here."""
    found = values([(text, text), (text, "x")], "generation")
    assert (found["rouge_l"], found["exact_match"]) == (0.5, 0.5)
    half = text[: len(text) // 2]
    assert 0 < metrics.outcomes("rouge_l", answered([(text, half)]))[0] < 1


def test_words_of_english_are_those_of_rouge() -> None:
    from rouge_score.tokenize import tokenize

    for text in [text for pair in TEXTS for text in pair] + ["a_b-c 1.5 don't  \t x\n\nY", ""]:
        assert metrics.words(text) == tokenize(text, None)


@pytest.mark.parametrize("task", ["classification", "structured", "generation"])
def test_an_answer_of_100_kb(task: Any) -> None:
    rows = [("the answer is four", "four " * 20_000), (DELAY, "[" * 100_000), ("x", "\ud83d\x00")]
    start = time.process_time()
    found = values(rows, task)
    assert found.get("exact_match", found.get("accuracy")) == 0
    assert time.process_time() - start < 20


def test_intervals_depend_on_the_seed_alone() -> None:
    rows = answered(TEXTS * 20)
    once = metrics.measure(rows, "generation", 0.95, 1)
    assert once == metrics.measure(rows, "generation", 0.95, 1)
    assert once["rouge_l"] != metrics.measure(rows, "generation", 0.95, 2)["rouge_l"]
    assert once["bleu"]["low"] < once["bleu"]["value"] < once["bleu"]["high"]


@pytest.mark.parametrize("metric", ["macro_f1", "bleu", "chrf", "perplexity"])
def test_a_metric_of_all_rows_at_once_has_no_outcomes(metric: str) -> None:
    with pytest.raises(ValueError, match=f"{metric} is a metric of all rows at once, by which"):
        metrics.outcomes(metric, answered(TEXTS))


def test_a_metric_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="f2 is no metric that is known here"):
        metrics.outcomes("f2", answered(TEXTS))


def test_similarity_of_free_text(tiny_model: Path) -> None:
    """With the tiny model for an encoder: a text is most like itself."""
    rows = [("the truck is late", "the truck is late"), ("held by customs", ""), ("x", "two x")]
    found = values(rows, "generation", embedding_model=tiny_model)
    assert -1 <= found["embedding_similarity"] <= 1
    alike, *_ = metrics.outcomes("embedding_similarity", answered(rows), tiny_model)
    assert alike == pytest.approx(1, abs=1e-5)
