"""Prompts that have different answers, found by digests in two sorted columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Contradictions(NamedTuple):
    """`rows`: numbers of the rows at fault, rising; `others`: for each, a row that has the same
    prompt and another answer, as far as the first of its prompt and the first to differ from it
    go; `prompts`: distinct prompts in all; `contradicted`: those of them with different answers."""

    rows: NDArray[np.int64]
    others: NDArray[np.int64]
    prompts: int
    contradicted: int


def find(prompts: NDArray[np.int64], answers: NDArray[np.int64]) -> Contradictions:
    """All rows of a prompt with different answers are at fault, the first too.

    Args:
        prompts, answers: a 64-bit digest a row.  Among a million random ones two are equal with a
            probability of 3e-8 (birthday bound), so equal digests are taken for equal texts.
    """
    import numpy as np

    if not len(prompts):
        nothing = np.empty(0, np.int64)
        return Contradictions(nothing, nothing, 0, 0)
    order = np.argsort(prompts, kind="stable")
    grouped, answered = prompts[order], answers[order]
    starts = np.flatnonzero(np.concatenate([[True], grouped[1:] != grouped[:-1]]))
    sizes = np.diff(np.append(starts, len(grouped)))
    group = np.repeat(np.arange(len(starts)), sizes)
    differing = np.flatnonzero(answered != answered[starts][group])
    contradicted, first = np.unique(group[differing], return_index=True)
    other = np.full(len(starts), -1)
    other[contradicted] = order[differing[first]]

    at_fault = other[group] >= 0
    rows, groups = order[at_fault], group[at_fault]
    leaders = order[starts][groups]
    others = np.where(rows == leaders, other[groups], leaders)
    rising = np.argsort(rows)
    return Contradictions(rows[rising], others[rising], len(starts), len(contradicted))
