"""Great Expectations over a flat frame of numbers about rows; never over what the rows say.

The suites of rows judge what goes out, after the rows that broke a rule were rejected: there a rule
about single rows holds unless the checks of rows are at fault.  The suite `rejected` judges what
came in: for each suite and group of reasons the share of rows that was rejected.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset import checklist, data_docs
from tasks.params import Validate

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rule:
    """An expectation, and the key of params.yaml that its limit comes from."""

    type: str
    column: str | None
    low: float | None
    high: float | None
    key: str | None = None

    def limit(self) -> str:
        """The limit in words."""
        if self.type in _WITHOUT_LIMITS:
            return _WITHOUT_LIMITS[self.type]
        if self.type == VALUES:
            return f"{self._range()}, after the rows that broke a rule were rejected"
        return self._range()

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a rule on the rows of a suite."""

    suite: str
    rule: Rule
    passed: bool
    observed: str

    def __str__(self) -> str:
        column = f" of {self.rule.column}" if self.rule.column else ""
        key = f" (validate.{self.rule.key})" if self.rule.key else ""
        expected = f"expected {self.rule.limit()}{key}"
        return f"{self.suite}: {self.rule.type}{column}: observed {self.observed}, {expected}"


ROWS = "ExpectTableRowCountToBeBetween"
UNIQUE = "ExpectColumnValuesToBeUnique"
VALUES = "ExpectColumnValuesToBeBetween"
MEAN = "ExpectColumnMeanToBeBetween"
NOT_NULL = "ExpectColumnValuesToNotBeNull"
_WITHOUT_LIMITS = {UNIQUE: "each value once", NOT_NULL: "no null"}


def frame(table: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """The numbers about the rows of a suite, a column a number, with `commonest_answer` (0 or 1) in
    place of what the answer is."""
    import numpy as np
    import pandas as pd

    columns = dict(table)
    if "answer" in columns:
        answers = columns.pop("answer")
        if len(answers):
            found, counts = np.unique(answers, return_counts=True)
            columns["commonest_answer"] = (answers == found[counts.argmax()]).astype("i1")
    return pd.DataFrame(columns)


def rules(suite: str, rows: pd.DataFrame, settings: Validate) -> list[Rule]:
    """What the rows of a suite must satisfy.

    A frame without rows passes every expectation on columns, so the number of rows comes first.
    """
    train = suite == "chat-train"
    low = settings.min_rows if train else 1
    found = [Rule(ROWS, None, low, None, "min_rows" if train else None)]
    if rows.empty:
        return found
    prompt, answer = settings.prompt_chars, settings.answer_chars
    ranges = [
        Rule(VALUES, "personal_data", 0, 0, "privacy"),
        Rule(VALUES, "characters", 1, None),
    ]
    if suite != "chat-benchmark":
        ranges += [
            Rule(VALUES, "shortest_prompt", prompt[0], None, "prompt_chars"),
            Rule(VALUES, "longest_prompt", None, prompt[1], "prompt_chars"),
            Rule(VALUES, "shortest_answer", answer[0], None, "answer_chars"),
            Rule(VALUES, "longest_answer", None, answer[1], "answer_chars"),
        ]
    if suite in ("chat-train", "chat-test", "preference"):
        ranges.append(Rule(VALUES, "valid_answer", 1, 1, "answer_schema"))
    found += [Rule(NOT_NULL, "row", None, None), Rule(UNIQUE, "row", None, None)]
    found += [rule for rule in ranges if rule.column in rows]
    if train:
        share = settings.max_class_share
        found.append(Rule(MEAN, "commonest_answer", None, share, "max_class_share"))
    return found


def score_rules(scores: Sequence[checklist.Score]) -> list[Rule]:
    """The quality checklist as expectations: each is about a column with one row, the score."""
    return [
        Rule(MEAN, score.name, score.limit, None, f"min_score.{score.name}")
        for score in scores
        if score.value is not None
    ]


def reject_rules(shares: Mapping[str, float], settings: Validate) -> list[Rule]:
    """No reason may take more than its share of the rows that came into a suite."""
    limit = settings.max_reject_share
    return [Rule(MEAN, name, None, limit, "max_reject_share") for name in shares]


def import_beside() -> None:
    """Start to import Great Expectations, which takes four seconds, in a thread."""
    threading.Thread(target=_import, name="import", daemon=True).start()


def _import() -> tuple[Any, Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when it is imported
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx, gxe


def evaluate(
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    shares: Mapping[str, float],
    scores: Sequence[checklist.Score],
    warning: str | None,
    settings: Validate,
    docs: Path,
) -> list[Finding]:
    """Run a suite over the numbers of each kind of record, one over the shares of rejected rows and
    one over the scores; write the Data Docs into `docs`."""
    import pandas as pd

    gx, gxe = _import()
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
    )

    data_docs.clear(docs)
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            data_docs_sites={"docs": data_docs.site(docs)},
            progress_bars={"globally": False},
            analytics_enabled=False,
        ),
    )
    source = context.data_sources.add_pandas("rows")
    findings: list[Finding] = []

    def judge(name: str, rows: pd.DataFrame, wanted: list[Rule]) -> None:
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(
            gx.ExpectationSuite(
                name=name,
                expectations=[getattr(gxe, rule.type)(**_arguments(rule)) for rule in wanted],
            )
        )
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        result = definition.run(batch_parameters={"dataframe": rows}, result_format="BASIC")
        findings.extend(_findings(name, wanted, result))

    for suite, table in tables.items():
        rows = frame(table)
        judge(suite, rows, rules(suite, rows, settings))
    if wanted := reject_rules(shares, settings):
        judge("rejected", pd.DataFrame({name: [share] for name, share in shares.items()}), wanted)
    if wanted := score_rules(scores):
        judge("quality", pd.DataFrame({score.name: [score.value] for score in scores}), wanted)
    context.build_data_docs()
    data_docs.finish(docs, findings, scores, warning)
    return findings


def _arguments(rule: Rule) -> dict[str, Any]:
    arguments: dict[str, Any] = {} if rule.column is None else {"column": rule.column}
    if rule.low is not None:
        arguments["min_value"] = rule.low
    if rule.high is not None:
        arguments["max_value"] = rule.high
    if rule.key is not None:
        arguments["notes"] = f"validate.{rule.key} in params.yaml"
    return arguments


def _findings(suite: str, wanted: list[Rule], result: Any) -> list[Finding]:
    """Results come back grouped by column, so each finds its rule by name and column."""
    by_place = {(rule.type, rule.column): rule for rule in wanted}
    found: dict[tuple[str, str | None], Finding] = {}
    for item in result.results:
        name = "".join(part.title() for part in item.expectation_config.type.split("_"))
        place = (name, item.expectation_config.kwargs.get("column"))
        found[place] = Finding(suite, by_place[place], bool(item.success), _observed(item))
    return [found[rule.type, rule.column] for rule in wanted]


def _observed(item: Any) -> str:
    if item.exception_info.get("raised_exception"):
        return f"an error: {item.exception_info.get('exception_message')}"
    if "observed_value" in item.result:
        return f"{item.result['observed_value']:.6g}"
    rows, bad = item.result["element_count"], item.result["unexpected_count"]
    return f"{bad} of {rows} rows outside"
