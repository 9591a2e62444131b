"""The baseline of words: what it learns, how it answers, and when there is none."""

from __future__ import annotations

import json
import random

import pytest

from tasks.evaluation import classical
from tasks.evaluation.classical import LeftOut
from tasks.evaluation.rows import Row

SIGNS = {"late": "delay", "customs": "hold", "broken": "damage"}
DAYS = {"tomorrow": 1, "soon": 3}


def row(text: str, answer: str) -> Row:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Row("s", text, "train", False, messages)


def rows(count: int, seed: int, **dump: object) -> list[Row]:
    draw = random.Random(seed)
    found = []
    for number in range(count):
        sign, day = draw.choice(list(SIGNS)), draw.choice(list(DAYS))
        answer = {"kind": SIGNS[sign], "days": DAYS[day], "unit": "d"}
        text = json.dumps(answer, **dump)  # type: ignore[arg-type]
        found.append(row(f"parcel {number} is {sign}, expect it {day}", text))
    return found


def test_a_field_each_assembled_as_the_data_writes_it() -> None:
    trained = classical.train(rows(60, 1, separators=(",", ":")), rows(20, 2))
    assert trained.answer(["the customs have it, tomorrow", "broken. soon!"]) == [
        '{"kind":"hold","days":1,"unit":"d"}',
        '{"kind":"damage","days":3,"unit":"d"}',
    ]
    assert set(trained.strengths) == {"kind", "days"}  # unit is the same everywhere
    assert trained.training_rows == 60
    spaced = classical.train(rows(60, 1), rows(20, 2))
    assert spaced.answer(["late, soon"]) == ['{"kind": "delay", "days": 3, "unit": "d"}']


def test_the_order_of_keys_makes_no_shape_and_the_commonest_is_written() -> None:
    solved = []
    for number, one in enumerate(rows(60, 1)):
        answer = json.loads(one.expected)
        keys = list(answer) if number % 5 < 2 else sorted(answer)
        text = json.dumps({key: answer[key] for key in keys})
        solved.append(row(one.question, text))
    trained = classical.train(solved, rows(20, 2))
    assert trained.training_rows == 60
    assert trained.answer(["late, soon"]) == ['{"days": 3, "kind": "delay", "unit": "d"}']


def test_labels_that_are_text() -> None:
    solved = [row(f"{n} {word}", label) for n in range(9) for word, label in SIGNS.items()]
    trained = classical.train(solved, [])
    assert trained.answer(["it is late", "broken"]) == ["delay", "damage"]
    assert trained.strengths == {"": classical.STRENGTHS[0]}  # nothing to choose it on


def test_c_is_chosen_by_right_answers_on_validation() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score

    from tasks.evaluation.metrics import words

    draw = random.Random(5)
    vocabulary = [f"w{n}" for n in range(40)]

    def noisy(count: int) -> list[Row]:
        made = []
        for _ in range(count):
            text = draw.choices(vocabulary, k=6)
            label = "a" if sum(int(word[1:]) for word in text) > 120 else "b"
            made.append(row(" ".join(text), label))
        return made

    solved, held_out = noisy(120), noisy(80)
    trained = classical.train(solved, held_out)
    vectoriser = TfidfVectorizer(tokenizer=words, token_pattern=None, sublinear_tf=True)
    x = vectoriser.fit_transform([one.question for one in solved])
    y = [one.expected for one in solved]
    scores = {}
    for strength in classical.STRENGTHS:
        model = LogisticRegression(C=strength, solver="newton-cg", max_iter=1000).fit(x, y)
        given = model.predict(vectoriser.transform([one.question for one in held_out]))
        scores[strength] = accuracy_score([one.expected for one in held_out], given)
    assert trained.strengths[""] == max(scores, key=lambda strength: scores[strength])
    again = classical.train(solved, held_out)
    asked = [one.question for one in held_out]
    assert again.answer(asked) == trained.answer(asked)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "there are no training rows"),
        (["same"] * 6, "all training answers are the same, so there is nothing to learn"),
        (['{"a": 1}'] * 6, "all training answers are the same"),
        ([f"free text {n}" for n in range(6)], "the answer has 6 values in 6 training rows, which"),
        ([json.dumps({"a": n, "b": 1}) for n in range(6)], "a has 6 values in 6 training rows"),
        (['{"a": 1}'] * 3 + ["text"] * 3, "only 3 of 6 training answers have one shape"),
        (["[1, 2]"] * 6, "answers are JSON arrays, which are no class"),
        (["{}"] * 6, "answers are empty JSON objects"),
    ],
)
def test_answers_that_are_no_classes(answers: list[str], why: str) -> None:
    with pytest.raises(LeftOut) as caught:
        classical.train([row(f"q {n}", text) for n, text in enumerate(answers)], [])
    assert str(caught.value).startswith(why)


def test_questions_without_words() -> None:
    with pytest.raises(LeftOut, match="the questions hold no words"):
        classical.train([row("?" * n, "ab"[n % 2]) for n in range(1, 9)], [])


def test_a_few_answers_of_another_shape_are_not_learned_from() -> None:
    solved = [*rows(40, 1), row("late", "I do not know")]
    assert classical.train(solved, []).training_rows == 40


def test_nothing_to_learn_from_is_not_all_the_same() -> None:
    with pytest.raises(LeftOut, match="there are no training rows"):
        classical._check_classes(classical.Shape((), (", ", ": ")), [])
