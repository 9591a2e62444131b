"""The quality checklist of a fine-tuning dataset: six scores from 0 (bad) to 1, and its volume.

Judged are the train chats.  Scores that need the rows' text take a sample, so that they cost the
same for any number of rows and can be compared between datasets of different sizes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset import duplicates
from tasks.lineage.stage import StageError
from tasks.params import NearDuplicates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE = 20_000
"""Rows at most that scores on text look at."""

NEAR_DUPLICATES = NearDuplicates(threshold=0.7, shingle_words=3, permutations=128)
SEED = 0
"""What the score `clusters` calls near-duplicates.  Fixed, not the settings of stage `format`, so
that the score of a dataset does not move when those are tuned."""

FREE_TEXT = 0.5
"""Distinct answers over answers from which they are free text and not classes."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a score says, and what to do when it is low."""

    says: str
    remedy: str


MEANINGS = {
    "consistency": Meaning(
        "answers that satisfy validate.answer_schema, or without one have the commonest shape "
        "(JSON object with the same keys, other JSON, free text)",
        "mend the answers in the rejects, or widen the schema to what is really wanted",
    ),
    "contradictions": Meaning(
        "prompts that have one answer only",
        "see the rejects with reason contradiction; agree on one rule and label them again",
    ),
    "class_balance": Meaning(
        "entropy of the answers over that of equally many of each; not judged for free text",
        "collect rows of the rare answers, or thin out the common ones",
    ),
    "distinct_words": Meaning(
        "different pairs of neighbouring words in prompts over all such pairs",
        "collect prompts from more people, places and times; templates repeat themselves",
    ),
    "clusters": Meaning(
        "groups of near-duplicate prompts over prompts",
        "keep fewer copies of one message; stage format drops them all but one",
    ),
    "length": Meaning(
        "rows whose text fits into the model's context",
        "shorten or split long rows, or choose a model with a longer context",
    ),
}


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is None where the rows cannot be judged; `limit` is validate.min_score.<name>."""

    name: str
    value: float | None
    limit: float

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} not judged"
        remedy = f"; {MEANINGS[self.name].remedy}" if self.value < self.limit else ""
        return f"{self.name} {self.value:.4f}, at least {self.limit:g}{remedy}"


def consistency(valid: int, judged: int, shapes: NDArray[np.int64], schema: bool) -> float | None:
    """Answers of the right form over answers.

    With a schema these are `valid` of the `judged` answers of all train chats, those rejected for
    their answer among them: of what is left every answer would be valid.  Without one, the rows of
    the commonest of `shapes`, a digest a row.
    """
    import numpy as np

    if schema:
        return valid / judged if judged else None
    if not len(shapes):
        return None
    return float(np.unique(shapes, return_counts=True)[1].max() / len(shapes))


def contradictions(prompts: int, contradicted: int) -> float | None:
    """Distinct prompts with one answer only, over distinct prompts."""
    return (prompts - contradicted) / prompts if prompts else None


def class_balance(answers: NDArray[np.int64]) -> float | None:
    """Shannon's entropy of the answers over its maximum, the logarithm of their number (Pielou's
    evenness, J. Theor. Biol. 13, 1966).

    None where more than FREE_TEXT of the answers are distinct: free text has no classes.  One
    answer alone scores 0.

    Args:
        answers: a digest a row.
    """
    import numpy as np

    if not len(answers):
        return None
    counts = np.unique(answers, return_counts=True)[1]
    if len(counts) == 1:
        return 0.0
    if len(counts) > FREE_TEXT * len(answers):
        return None
    shares = counts / len(answers)
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts)))


def distinct_words(texts: Sequence[str]) -> float | None:
    """Distinct bigrams of words over bigrams: distinct-2 of Li et al. 2016 (arXiv:1510.03055).

    It falls as text grows, so it is to be compared between samples of one size.
    """
    import numpy as np

    vocabulary: dict[str, int] = {}
    found: list[NDArray[np.int64]] = []
    total = 0
    for start in range(0, len(texts), _BATCH):
        bigrams: list[int] = []
        for text in texts[start : start + _BATCH]:
            numbers = [
                vocabulary.setdefault(word, len(vocabulary)) for word in duplicates.words(text)
            ]
            bigrams += [left << 32 | right for left, right in pairwise(numbers)]
        total += len(bigrams)
        found.append(np.unique(np.array(bigrams, np.int64)))
    return len(np.unique(np.concatenate(found))) / total if total else None


_BATCH = 1_000


def clusters(texts: Sequence[str]) -> float | None:
    """Groups of near-duplicates over texts; 1 when no two are alike.

    Of a sample of n of N rows: a text and its single copy are both in it with a probability of
    (n/N)^2, so on large data this shows what comes many times and misses what comes twice.
    """
    import numpy as np

    if not texts:
        return None
    partition = duplicates.clusters(texts, NEAR_DUPLICATES, SEED)
    return len(np.unique(partition.labels())) / len(texts)


def length(texts: Sequence[str], base: Path) -> float | None:
    """Rows of which all turns together have at most as many tokens as the model's context.

    The few tokens of the chat template are not counted here; stage `format` renders each row and
    rejects what is longer than format.max_tokens.  None for a model that names no context.

    Raises:
        StageError: when `base` has no tokenizer.json or config.json that can be read.
    """
    context = model_context(base)
    if context is None or not texts:
        return None
    tokenizer = _tokenizer(base)
    fitting = 0
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]))
        fitting += sum(len(encoding) <= context for encoding in encoded)
    return fitting / len(texts)


def model_context(base: Path) -> int | None:
    """Tokens of the longest sequence, from config.json; a multimodal model nests it.

    Raises:
        StageError: when there is no config.json that can be read.
    """
    path = base / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("max_position_embeddings") or config.get("text_config", {}).get(
            "max_position_embeddings"
        )
    except (OSError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from None
    return int(found) if found else None


def _tokenizer(base: Path) -> Any:
    from tokenizers import Tokenizer

    path = base / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what the library raises has no class of its own
        raise _unreadable(path, error) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unreadable(path: Path, error: Exception) -> StageError:
    return StageError(
        f"{path}: {type(error).__name__}, the length of rows is measured with it; "
        f"remove {path.parent} and run stage base"
    )


def volume(rows: int) -> str | None:
    """A warning where there are few train chats, in words that say what to expect; none where there
    are none, since then nothing is fine-tuned on them.

    The last number is half a 95% interval of a share (1.96 sqrt(p (1 - p) / n)) at p = 0.9 on a
    tenth of the rows.
    """
    for limit, words in _VOLUME:
        if 0 < rows < limit:
            return f"{rows} train chats are fewer than {limit}: {words}"
    return None


_VOLUME = (
    (
        200,
        "the model learns the form of the answers and little of the task, and a test of a tenth of "
        "them tells 90% from 77% at best. Compare it with a few examples in the prompt",
    ),
    (
        500,
        "enough for a narrow task with few answers; rare answers will often be wrong, and a test "
        "of a tenth of them is good to 8 points or worse",
    ),
    (
        1_000,
        "enough for most narrow tasks; a test of a tenth of them is good to 6 points or worse, so "
        "small gains cannot be told from luck",
    ),
)
