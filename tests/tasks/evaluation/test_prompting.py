"""How questions are put to a model: prompts, examples and passages, and what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation import prompting
from tasks.evaluation.prompting import Question, Tried
from tasks.evaluation.rows import Row
from tasks.model import chat


def row(number: int, answer: str = "yes", text: str = "") -> Row:
    turns = [
        ("system", "Be brief."),
        ("user", text or f"is truck {number} late?"),
        ("assistant", answer),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    return Row("s", str(number), "train", False, messages)


def contents(turns: list[Any]) -> list[str]:
    return [f"{turn['role']}: {turn['content']}" for turn in turns]


def test_examples_are_earlier_turns_behind_one_system_turn() -> None:
    question = Question(row(1), examples=(row(2), row(3, "no")))
    assert contents(question.solved) == [
        "system: Be brief.",
        "user: is truck 2 late?",
        "assistant: yes",
        "user: is truck 3 late?",
        "assistant: no",
        "user: is truck 1 late?",
        "assistant: yes",
    ]
    assert question.turns == question.solved[:-1]


def test_a_prompt_and_passages_stand_in_the_last_turn() -> None:
    question = Question(row(1), 'Say {"late": true}: {question}', passages=("one", "two"))
    assert contents(question.turns)[-1] == (
        'user: These passages may help:\n\none\n\ntwo\n\nSay {"late": true}: is truck 1 late?'
    )


def test_what_does_not_fit_is_left_out_and_counted(tiny_model: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    asked = Question(row(1), "Please, {question}", examples=(row(2), row(3)), passages=("a", "b"))
    (bare,) = prompting.fit([Question(row(1))], tokenizer, 10_000).prompts
    whole = prompting.fit([asked], tokenizer, 10_000)
    assert (whole.left_out, whole.questions) == (0, [asked])

    tight = prompting.fit([asked, Question(row(1))], tokenizer, len(bare))
    assert tight.prompts == [bare, bare]
    assert tight.left_out == 5
    assert tight.questions[0] == Question(row(1))

    some = prompting.fit([asked], tokenizer, len(whole.prompts[0]) - 1)
    assert some.left_out == 1
    assert some.questions[0].examples == (row(3),)  # the first is the least useful


def test_a_bare_question_that_fills_the_context_is_left_to_the_engine(tiny_model: Path) -> None:
    fitted = prompting.fit([Question(row(1))], chat.load_tokenizer(tiny_model), 3)
    assert len(fitted.prompts[0]) > 3
    assert fitted.left_out == 0


def test_an_example_that_the_template_refuses_is_left_out(tiny_model: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    token = chat.special_tokens(tokenizer)[0]
    bad = row(2, text=f"what is {token}?")
    fitted = prompting.fit([Question(row(1), examples=(bad, row(3)))], tokenizer, 10_000)
    assert fitted.questions[0].examples == (row(3),)
    with pytest.raises(chat.ChatError, match="holds the special token"):
        prompting.fit([Question(bad)], tokenizer, 10_000)


def test_examples_have_different_answers_and_questions() -> None:
    solved = [row(n, "abc"[n % 3]) for n in range(30)]
    solved += [row(99, "a", text="IS truck 0 late")]  # the words of row 0
    chosen = prompting.examples(solved, 3, seed=1)
    assert sorted(one.expected for one in chosen) == ["a", "b", "c"]
    assert prompting.examples(solved, 3, seed=1) == chosen
    assert prompting.examples(solved, 3, seed=2) != chosen
    every = prompting.examples(solved, 100, seed=1)
    assert len(every) == 30
    assert prompting.examples([], 4, seed=1) == ()


def best(prompts: list[str | None], found: dict[str | None, Tried], rows: int = 3) -> Any:
    asked: list[int] = []

    def attempt(questions: list[Question]) -> Tried:
        asked.append(len(questions))
        return found[questions[0].prompt]

    validation = [row(n) for n in range(rows)]
    return (*prompting.best(prompts, validation, 1, attempt), asked)


def test_the_best_prompt_is_chosen_on_validation() -> None:
    found = {None: Tried(0.5, 1.0), "a": Tried(0.75, 9.0), "b": Tried(0.25, 0.5)}
    chosen, tried, asked = best([None, "a", "b"], found, rows=500)
    assert chosen == "a"
    assert tried == {prompting.PLAIN: 0.5, "a": 0.75, "b": 0.25}
    assert asked == [prompting.TRIED] * 3


def test_equal_prompts_go_by_likelihood_then_order() -> None:
    assert best([None, "a"], {None: Tried(0.0, 2.0), "a": Tried(0.0, 1.0)})[0] == "a"
    assert best([None, "a"], {None: Tried(0.0, 1.0), "a": Tried(0.0, 1.0)})[0] is None


def test_nothing_is_tried_without_choice_or_rows() -> None:
    assert best(["a"], {}) == ("a", {}, [])
    assert best([None, "a"], {}, rows=0) == (None, {}, [])


def test_a_mean_of_what_a_metric_speaks_of() -> None:
    assert prompting.mean([1.0, float("nan"), 0.0]) == 0.5
    assert prompting.mean([float("nan")]) == 0.0
