"""Which rows contradict each other, by the digests of prompts and answers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.dataset import contradictions


def find(*rows: tuple[int, int]) -> contradictions.Contradictions:
    columns = np.array(rows, np.int64).reshape(-1, 2)
    return contradictions.find(columns[:, 0], columns[:, 1])


def test_every_row_of_a_prompt_with_two_answers_is_at_fault() -> None:
    found = find((7, 1), (7, 2), (8, 2), (7, 1))
    assert found.rows.tolist() == [0, 1, 3]
    assert found.others.tolist() == [1, 0, 0]
    assert (found.prompts, found.contradicted) == (2, 1)


def test_rows_that_agree_and_no_rows_at_all() -> None:
    assert find((1, 1), (1, 1), (2, 1)).rows.tolist() == []
    assert find().rows.tolist() == find().others.tolist() == []
    assert (find().prompts, find().contradicted) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_it_is_what_a_slow_search_finds(rows: list[tuple[int, int]]) -> None:
    found = find(*rows)
    answers: dict[int, list[int]] = {}
    for prompt, answer in rows:
        answers.setdefault(prompt, []).append(answer)
    bad = {prompt for prompt, given in answers.items() if len(set(given)) > 1}
    assert found.rows.tolist() == [n for n, (prompt, _) in enumerate(rows) if prompt in bad]
    assert (found.prompts, found.contradicted) == (len(answers), len(bad))
    for row, other in zip(found.rows.tolist(), found.others.tolist(), strict=True):
        assert rows[row][0] == rows[other][0]
        assert row != other
