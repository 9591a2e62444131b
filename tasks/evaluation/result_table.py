"""The table of results: a row a candidate, a column a metric, and every metric to unfold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.evaluation import conclusions, contamination
from tasks.evaluation.conclusions import Document
from tasks.evaluation.contamination import Contamination
from tasks.evaluation.metrics import NO_SHARE
from tasks.evaluation.rows import SPLITS, Row
from tasks.evaluation.statistics import Estimate

MOST_METRICS = 4
"""Columns that fit on a phone."""


MEANINGS = {
    "exact_match": "the share of answers that are exactly right; JSON is compared as values, so order "
    "and spacing do not count",
    "accuracy": "the share of answers that are the right class",
    "json_valid": "the share of answers that are a JSON object or array",
    "schema_valid": "the share of answers that have the expected fields with values of their kind",
    "macro_f1": "recall and precision in one number, each class counting the same; micro counts rows",
    "rouge_l": "how much of the expected wording is found in the same order, 0 to 1",
    "bleu": "how many short runs of words are those of the expected answer, 0 to 1",
    "chrf": "the same for runs of letters",
    "embedding_similarity": "how alike answer and expected answer are to a sentence encoder",
    "perplexity": "how surprising the expected answers are to the model; lower is better, and it "
    "decides nothing",
}
"""What metrics measure, for who does not know their names."""


@dataclass(frozen=True)
class Split:
    """The results on one split; `shown` are the metrics of the table, `others` those that unfold."""

    name: str
    rows: int
    contaminated: Contamination
    candidates: dict[str, Mapping[str, Estimate]]
    shown: list[str]
    others: list[str]
    bars: set[str]
    """Metrics between 0 and 1, which can be drawn as bars."""


def splits(
    document: Document,
    gates: Sequence[Mapping[str, object]],
    rows: Sequence[Row],
    contaminated: Mapping[str, Contamination],
) -> list[Split]:
    """A table for each split that has rows, of the candidates that were asked them."""
    return [
        _split(document, gates, split, count, contaminated[split])
        for split in SPLITS
        if (count := sum(row.is_in(split) for row in rows))
    ]


def _split(
    document: Document,
    gates: Sequence[Mapping[str, object]],
    split: str,
    rows: int,
    contaminated: Contamination,
) -> Split:
    candidates = {
        name: measured[split]
        for name, measured in document["candidates"].items()
        if measured.get(split)
    }
    metrics = list(dict.fromkeys(metric for found in candidates.values() for metric in found))
    shown = conclusions.shown_metrics(document, gates, split, MOST_METRICS)
    return Split(
        name=split,
        rows=rows,
        contaminated=contaminated,
        candidates=candidates,
        shown=shown,
        others=[name for name in metrics if name not in (*shown, contamination.METRIC)],
        bars={
            metric
            for metric in metrics
            if metric not in NO_SHARE
            and _are_shares([found[metric] for found in candidates.values() if metric in found])
        },
    )


def _are_shares(estimates: Sequence[Estimate]) -> bool:
    ends = [end for found in estimates for end in (found["value"], found["low"], found["high"])]
    return all(0 <= end <= 1 for end in ends if end is not None)


def meanings(splits: Sequence[Split]) -> dict[str, str]:
    """Of the metrics that stand in any of the tables."""
    present = {metric for split in splits for metric in (*split.shown, *split.others)}
    return {metric: meaning for metric, meaning in MEANINGS.items() if metric in present}
