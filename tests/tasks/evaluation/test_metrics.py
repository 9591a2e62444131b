"""Metrics on answers whose score is known."""

from tasks.evaluation import metrics
from tasks.evaluation.metrics import Answered

DELAY, HOLD = '{"category":"delay","eta":"1-2d"}', '{"category":"hold","eta":"unknown"}'


def values(rows: list[tuple[str, str]]) -> dict[str, float]:
    answered = [Answered(expected, answer, 2.0, 4) for expected, answer in rows]
    return {name: item["value"] for name, item in metrics.measure(answered, 0.95, 1).items()}


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


def test_text_answers() -> None:
    found = values([("four", " four\n"), ("quiet", DELAY)])
    assert found == {"json_valid": 0.5, "exact_match": 0.5, "perplexity": 1.648721}


def test_a_field_counts_only_where_it_is_expected() -> None:
    found = values([('{"a":1}', '{"a":1}'), ('{"b":1}', '{"a":1}'), ("x", "y")])
    assert (found["a_accuracy"], found["b_accuracy"]) == (1.0, 0.0)


def test_nested_values_are_one_field() -> None:
    row = '{"lines":[{"sku":"a","n":2}]}'
    assert values([(row, '{"lines": [{"n": 2, "sku": "a"}]}')])["lines_accuracy"] == 1.0


def test_no_rows_no_metrics() -> None:
    assert metrics.measure([], 0.95, 1) == {}
