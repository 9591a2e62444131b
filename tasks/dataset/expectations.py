"""Great Expectations over a flat frame of numbers about rows; never over what the rows say."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset import data_docs, privacy, quality
from tasks.params import Validate

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]


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


class Summary:
    """Numbers about the rows of a suite, a column a number; 8 bytes each."""

    def __init__(self, suite: str, checks: quality.RowChecks) -> None:
        self.suite = suite
        self._checks = checks
        self._columns: dict[str, array[int]] = {}

    def add(self, record: Row) -> None:
        """Take note of a row."""
        for name, value in self._numbers(record).items():
            self._columns.setdefault(name, array("q")).append(value)

    def _numbers(self, record: Row) -> dict[str, int]:
        refused = self._checks.refused_kinds
        found = [f.kind for text in quality.texts(record) for f in privacy.find(text)]
        numbers = {
            "row": quality.digest(record["source"], record["id"]),
            "personal_data": sum(kind in refused for kind in found),
        }
        if "text" in record:
            return {**numbers, "characters": len(record["text"])}
        prompts, answers = quality.prompt_chars(record), quality.answer_chars(record)
        return {
            **numbers,
            "shortest_prompt": min(prompts),
            "longest_prompt": max(prompts),
            "shortest_answer": min(answers),
            "longest_answer": max(answers),
            "valid_answer": self._checks.answer_is_valid(record),
            "answer": quality.answer_digest(record),
        }

    def frame(self) -> pd.DataFrame:
        """The numbers, with `commonest_answer` (0 or 1) in place of what the answer is."""
        import numpy as np
        import pandas as pd

        frame = pd.DataFrame(
            {name: np.array(values, dtype=np.int64) for name, values in self._columns.items()}
        )
        if "answer" in frame:
            commonest = frame["answer"].mode().iloc[0]
            frame["commonest_answer"] = (frame.pop("answer") == commonest).astype("int64")
        return frame


def rules(suite: str, columns: list[str], settings: Validate) -> list[Rule]:
    """What the rows of a suite must satisfy.

    A frame without rows passes every expectation on columns, so the number of rows comes first.
    """
    train = suite == "chat-train"
    rows = (
        Rule(ROWS, None, settings.min_rows, None, "min_rows")
        if train
        else Rule(ROWS, None, 1, None)
    )
    prompt, answer = settings.prompt_chars, settings.answer_chars
    ranges = {
        "shortest_prompt": Rule(VALUES, "shortest_prompt", prompt[0], None, "prompt_chars"),
        "longest_prompt": Rule(VALUES, "longest_prompt", None, prompt[1], "prompt_chars"),
        "shortest_answer": Rule(VALUES, "shortest_answer", answer[0], None, "answer_chars"),
        "longest_answer": Rule(VALUES, "longest_answer", None, answer[1], "answer_chars"),
        "characters": Rule(VALUES, "characters", 1, None),
        "personal_data": Rule(VALUES, "personal_data", 0, 0, "privacy"),
        "valid_answer": Rule(VALUES, "valid_answer", 1, 1, "answer_schema"),
    }
    found = [rows]
    if "row" in columns:
        found += [Rule(NOT_NULL, "row", None, None), Rule(UNIQUE, "row", None, None)]
    found += [ranges[column] for column in columns if column in ranges]
    if train and "commonest_answer" in columns:
        share = settings.max_class_share
        found.append(Rule(MEAN, "commonest_answer", None, share, "max_class_share"))
    return found


def evaluate(summaries: list[Summary], settings: Validate, docs: Path) -> list[Finding]:
    """Run a suite over each summary and write the Data Docs into `docs`."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when it is imported
    import great_expectations as gx
    import great_expectations.expectations as gxe
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
    for summary in summaries:
        frame = summary.frame()
        wanted = rules(summary.suite, list(frame.columns), settings)
        batch = source.add_dataframe_asset(summary.suite).add_batch_definition_whole_dataframe(
            "all"
        )
        suite = context.suites.add(
            gx.ExpectationSuite(
                name=summary.suite,
                expectations=[getattr(gxe, rule.type)(**_arguments(rule)) for rule in wanted],
            )
        )
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=summary.suite, data=batch, suite=suite)
        )
        result = definition.run(batch_parameters={"dataframe": frame}, result_format="BASIC")
        findings += _findings(summary.suite, wanted, result)
    context.build_data_docs()
    data_docs.finish(docs, findings)
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
