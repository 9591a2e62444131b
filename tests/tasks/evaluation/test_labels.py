"""Which fields are classes, and which class is taken for which."""

import json

from tasks.evaluation import labels
from tasks.evaluation.labels import OTHER, UNREADABLE


def row(category: object, note: str = "x") -> str:
    return json.dumps({"category": category, "note": note})


EXPECTED = [row("b", "1"), row("a", "2"), row("b", "3"), row("a", "4")]


def test_fields_with_few_values_are_classes() -> None:
    (field,) = labels.find(EXPECTED)  # each note is different: free text
    assert (field.name, field.labels) == ("category", ["a", "b"])


def test_one_value_is_no_class() -> None:
    assert labels.find([row("a")] * 4) == []


def test_values_that_are_no_text() -> None:
    (field,) = labels.find([row(True, "1"), row(None, "2"), row([1], "3"), row([1], "4")] * 2)[:1]
    assert field.labels == ["[1]", "null", "true"]


def test_whole_answers_as_classes() -> None:
    (field,) = labels.find(["yes", "no", "yes ", "no"])
    assert (field.name, field.labels) == ("answer", ["no", "yes"])
    assert field.right(" yes", "yes")
    assert not field.right("no", "yes")


def test_accuracy_by_label() -> None:
    (field,) = labels.find(EXPECTED)
    perfect, poor = EXPECTED, [row("a"), row("b"), row("b"), "not JSON"]
    first, second = labels.accuracies(field, EXPECTED, [perfect, poor], 0.95)
    assert (first.label, first.rows) == ("a", 2)
    assert [item["value"] for item in first.accuracy] == [1.0, 0.0]
    assert [item["value"] for item in second.accuracy] == [1.0, 0.5]


def test_confusion() -> None:
    (field,) = labels.find(EXPECTED)
    found = labels.confusion(field, EXPECTED, [row("a"), row("c"), row("b"), '{"note":"x"}'])
    assert found.columns == ["a", "b", OTHER, UNREADABLE]
    assert found.rows == [("a", [0, 0, 1, 1]), ("b", [1, 1, 0, 0])]


def test_a_task_of_classification_may_have_many_classes() -> None:
    (field,) = labels.find([f"intent_{n % 77}" for n in range(200)])
    assert len(field.labels) == 77
    assert labels.find([f"a story of its own that is told {n % 77}" * 3 for n in range(200)]) == []
    assert labels.find([row(f"intent_{n % 77}", str(n)) for n in range(200)]) == []
