"""What stands in the training data that is like a question, found by its words (BM25).

Robertson and Zaragoza 2009, in the form of Lucene, by bm25s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tasks.evaluation.metrics import words
from tasks.lineage.console import log

T = TypeVar("T")


def search(
    questions: Sequence[str], texts: Sequence[str], entries: Sequence[T], count: int
) -> list[tuple[T, ...]]:
    """For each question the entries whose text is most like it, the best first.

    Of texts that are equally like it, the earlier one comes first.  What shares no word with the
    question is not found.

    Args:
        texts: one for each entry.
        count: as many are found for each question, at most.
    """
    import bm25s
    import numpy

    tokens = [words(text) for text in texts]
    if not any(tokens):
        log.info("there is no text to retrieve from")
        return [() for _ in questions]
    index = bm25s.BM25(method="lucene", backend="numpy")
    index.index(tokens, show_progress=False)
    found: list[tuple[T, ...]] = []
    for question in questions:
        known = [word for word in words(question) if word in index.vocab_dict]
        if not known:
            found.append(())
            continue
        scores = index.get_scores(known)
        order = numpy.argsort(-scores, kind="stable")[:count]
        found.append(tuple(entries[at] for at in order.tolist() if scores[at] > 0))
    return found
