"""The Data Docs site: a folder that opens with index.html, without a network.

Great Expectations' own pages fetch styles, scripts and a logo from seven hosts, and their index is
empty without scripts.  A page about private data should tell nobody that it is read, so what is
remote is taken out, a style sheet is put in, and the index is a page of our own.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset.checklist import MEANINGS, Score

if TYPE_CHECKING:
    from tasks.dataset.expectations import Finding

_PARTS = ("expectations", "validations", "static", "index.html")


def clear(folder: Path) -> None:
    """Remove an earlier site, and nothing else that may lie in the folder."""
    for name in _PARTS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def site(folder: Path) -> dict[str, Any]:
    """The configuration of the site, for a data context."""
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.resolve()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


_FETCHES = re.compile(
    r"<(script|style|footer)\b.*?</\1>|<(?:link|img)\b[^>]*>", re.DOTALL | re.IGNORECASE
)


def finish(
    folder: Path, findings: Sequence[Finding], scores: Sequence[Score], warning: str | None
) -> None:
    """Make the site that Great Expectations wrote self-contained and give it an index."""
    shutil.rmtree(folder / "static")
    for page in sorted(folder.rglob("*.html")):
        text = _FETCHES.sub("", page.read_text(encoding="utf-8"))
        text = text.replace("</head>", f"<style>{_STYLE}</style></head>", 1)
        page.write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(_index(folder, findings, scores, warning), encoding="utf-8")


def _index(
    folder: Path, findings: Sequence[Finding], scores: Sequence[Score], warning: str | None
) -> str:
    failed = sum(not finding.passed for finding in findings)
    verdict = f"{failed} failed" if failed else "all hold"
    sections = "".join(
        _section(folder, suite, [finding for finding in findings if finding.suite == suite])
        for suite in dict.fromkeys(finding.suite for finding in findings)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data Docs</title>\n<style>{_STYLE}</style></head>\n<body><h1>Data Docs</h1>\n"
        f"<p>{len(findings)} expectations, {verdict}. They are about numbers taken from the rows, "
        "never about their text. Those about single rows are judged after the rows that broke a "
        "rule were rejected; <code>tunetrail rejects</code> lists these, and the suite "
        "<code>rejected</code> judges how many they are.</p>\n"
        f"{_checklist(scores, warning)}{sections}</body></html>\n"
    )


def _checklist(scores: Sequence[Score], warning: str | None) -> str:
    told = f'<p class="warned">{html.escape(warning)}.</p>\n' if warning else ""
    return (
        "<h2>Quality checklist</h2>\n<p>Of the train chats; 1 is best.</p>\n"
        f"{told}{_table(_SCORE_HEADS, map(_score, scores))}"
    )


_SCORE_HEADS = ("", "score", "value", "at least", "what it means", "what to do when it is low")


def _score(score: Score) -> list[str]:
    meaning = MEANINGS[score.name]
    return [
        "not judged" if score.value is None else _verdict(score.value >= score.limit),
        score.name,
        "" if score.value is None else f"{score.value:.4f}",
        f"{score.limit:g}",
        html.escape(meaning.says),
        html.escape(meaning.remedy),
    ]


def _section(folder: Path, suite: str, findings: Sequence[Finding]) -> str:
    page = next(iter(sorted((folder / "validations" / suite).rglob("*.html"))))
    return (
        f"<h2>{html.escape(suite)}</h2>\n"
        f'<p><a href="{page.relative_to(folder).as_posix()}">Validation result</a>, '
        f'<a href="expectations/{suite}.html">expectation suite</a></p>\n'
        f"{_table(_FINDING_HEADS, map(_finding, findings))}"
    )


_FINDING_HEADS = ("", "expectation", "column", "observed", "expected")


def _finding(finding: Finding) -> list[str]:
    type_ = finding.rule.type
    return [
        _verdict(finding.passed),
        f'<span title="{html.escape(type_)}">{html.escape(_in_words(type_))}</span>',
        html.escape(finding.rule.column or "rows"),
        html.escape(finding.observed),
        html.escape(finding.rule.limit()),
    ]


def _in_words(type_: str) -> str:
    """What an expectation asks; for one without words here, the words of its name."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type_.removeprefix("Expect")).lower()
    return _ASKS.get(type_, name)


_ASKS = {
    "ExpectTableRowCountToBeBetween": "enough rows",
    "ExpectColumnValuesToBeUnique": "no value twice",
    "ExpectColumnValuesToBeBetween": "every value within limits",
    "ExpectColumnMeanToBeBetween": "mean within limits",
    "ExpectColumnValuesToNotBeNull": "no value missing",
}


def _verdict(passed: bool) -> str:
    verdict, word = ("passed", "holds") if passed else ("failed", "fails")
    return f'<span class="{verdict}">{word}</span>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML; each names its head, which a narrow screen shows beside it."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-head="{name}">{cell}</td>' for name, cell in zip(heads, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return f'<table class="rows"><tr>{head}</tr>\n{body}</table>\n'


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
a { color: #0b57d0; } h1, h2, h4 { line-height: 1.2; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; }
td, th { border-bottom: 1px solid #d8dee4; padding: .3rem .6rem; text-align: left;
  vertical-align: top; }
.passed { color: #116329; } .failed { color: #b3261e; font-weight: 600; }
.warned { border-left: 4px solid #b3261e; padding-left: .8rem; }
.card { display: none; } .fa-check-circle, .fa-times { font-style: normal; }
.fa-check-circle::before { content: "holds"; } .fa-times::before { content: "fails"; }
.table-responsive { overflow-x: auto; } body { overflow-wrap: break-word; }
@media (max-width: 48rem) { body { margin: 1rem auto; }
  .rows, .rows tbody, .rows tr, .rows td { display: block; } .rows th { display: none; }
  .rows tr { border-bottom: 1px solid #d8dee4; padding: .5rem 0; }
  .rows td { border: 0; padding: .1rem 0; } .rows td:empty { display: none; }
  .rows td:not([data-head=""])::before { content: attr(data-head) ": "; color: #59636e; } }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e8ea; }
  a { color: #8ab4f8; } td, th { border-color: #30363d; } .passed { color: #6fdd8b; }
  .failed { color: #ff8a80; } .rows tr { border-color: #30363d; }
  .rows td:not([data-head=""])::before { color: #9aa4ae; } }
"""
