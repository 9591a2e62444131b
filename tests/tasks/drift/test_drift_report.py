"""The report says first what matters, shows every test, and can be read anywhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from drift_rows import LIKE, params, side

from tasks.drift import comparison, report

pytest_plugins = ("browsers",)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    drift = params().drift.model_copy(update={"permutations": 299})
    sides = {LIKE: (side("none", 400, 1), side("vocabulary", 300, 2))}
    (found,) = comparison.compare(sides, drift, params().format.near_duplicates, 1)
    estimate = {"value": -0.1, "low": -0.2, "high": -0.01}
    row = {"why": "x <b>", "source": "a", "id": "1", "prompt": "<script>alert(1)</script>",
           "answer": "y"}  # fmt: skip
    return {
        "check": "20261122T134501Z-0a1b2c3d",
        "decision": "drift",
        "message": "drift: 300 rows that arrived are unlike what shipments@3 learned from",
        "fired": True,
        "reasons": found.reasons,
        "champion": {"model": "shipments", "version": 3, "identity": "0" * 64},
        "data": {
            "id": "0" * 64,
            "files": [
                {"file": "week.jsonl", "like": LIKE, "sha256": "a" * 64, "bytes": 9, "rows": 300,
                 "rejected": 4}
            ],
        },
        "left_out": [{"file": "late.jsonl", "why": "is still being written"}],
        "statistics": {LIKE: found.document()},
        "quality": {
            LIKE: {"like": LIKE, "metric": "exact_match", "before": 0.9, "now": 0.8,
                   "rows_before": 284, "rows_now": 200, "difference": estimate,
                   "confidence": 0.993333, "least": 0.05, "fires": True, "says": "it fell",
                   "look_at": [row]}
        },
        "settings": drift.model_dump(mode="json"),
        "run": None,
    }  # fmt: skip


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_the_sentence_that_matters_comes_first(document: dict[str, Any]) -> None:
    said = text(report.render(document)).partition("Check 2026")[0]
    assert "Drift found Drift: 300 rows that arrived are unlike what shipments@3" in said
    assert "words tell arrivals from training rows" in said
    assert "'consignment'" in said.replace("&#39;", "'")


def test_every_test_stands_in_it(document: dict[str, Any]) -> None:
    said = text(report.render(document)).replace("\u200b", "")
    for name in document["statistics"][LIKE]["tests"]:
        assert name in said
    assert "late.jsonl is still being written" in said
    assert "exact_match 0.800 on 200 arrivals, 0.900 on the 284 rows" in said
    assert re.search(r"consignment 0\.0% 1\d\.\d%", said)


def test_rows_are_shown_as_text(document: dict[str, Any]) -> None:
    page = report.render(document)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_few_rows_make_a_page_too(document: dict[str, Any]) -> None:
    nothing = comparison.Comparison(LIKE, 900, 9, [], {}).document()
    few = {**document, "decision": "too_few", "fired": False, "reasons": [], "quality": None,
           "statistics": {LIKE: nothing}}  # fmt: skip
    assert "Fewer than 200 rows on one side can be compared" in text(report.render(few))
    assert report.table(few) == []


def test_prefect_and_mlflow_have_the_numbers(document: dict[str, Any]) -> None:
    rows = report.table(document)
    assert [row["test"] for row in rows if row["result"] == "drift"] == [
        "words", "rare words", "champion's exact_match",
    ]  # fmt: skip
    page = report.markdown_page(["drift: 300 rows", "  why"], document, {"The report": "file:///x"})
    assert page.startswith("## drift: 300 rows\n")
    assert "- The report: <file:///x>" in page
    numbers = report.numbers(document)
    assert numbers["fired"] == 1
    assert numbers[f"{LIKE}/words/effect"] > 0.8
    assert numbers[f"{LIKE}/quality/difference"] == -0.1
    assert all(re.fullmatch(r"[\w./ :-]+", name) for name in numbers)


def test_outlines_enclose_the_shares() -> None:
    found = {
        "edges": [0.0, 1.0, 2.0],
        "before": [0.5, 0.5],
        "now": [1.0, 0.0],
        "unit": "characters",
    }
    drawn = report.outlines("length", found)
    assert drawn.now.startswith("38.0,120.0 38.0,8.0 165.0,8.0 165.0,120.0")
    assert next(tick.text for tick in drawn.ticks_x) == "0"


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_hangs_over_the_edge(document: dict[str, Any], browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_content(report.render(document))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
