"""The Data Docs site: a folder that opens with index.html, without a network.

Great Expectations' own pages fetch styles, scripts and a logo from seven hosts, and their index is
empty without scripts.  A page about private data should tell nobody that it is read, so what is
remote is taken out, a style sheet is put in, and the index is a page of our own.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Sequence
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
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data Docs</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>Data Docs</h1>\n"
        f"<p>{len(findings)} expectations, {verdict}. They are about numbers taken from the rows, "
        f"never about their text.</p>\n{_checklist(scores, warning)}{sections}</body></html>\n"
    )


def _checklist(scores: Sequence[Score], warning: str | None) -> str:
    told = f'<p class="warned">{html.escape(warning)}.</p>\n' if warning else ""
    return (
        "<h2>Quality checklist</h2>\n<p>Of the train chats; 1 is best.</p>\n"
        f"{told}<table><tr><th></th><th>score</th><th>value</th><th>at least</th>"
        "<th>what it means</th><th>what to do when it is low</th></tr>\n"
        f"{''.join(map(_score, scores))}</table>\n"
    )


def _score(score: Score) -> str:
    if score.value is None:
        verdict, word, value = "", "not judged", ""
    else:
        passed = score.value >= score.limit
        verdict, word = ("passed", "holds") if passed else ("failed", "fails")
        value = f"{score.value:.4f}"
    meaning = MEANINGS[score.name]
    return (
        f'<tr><td class="{verdict}">{word}</td><td>{score.name}</td><td>{value}</td>'
        f"<td>{score.limit:g}</td><td>{html.escape(meaning.says)}</td>"
        f"<td>{html.escape(meaning.remedy)}</td></tr>\n"
    )


def _section(folder: Path, suite: str, findings: Sequence[Finding]) -> str:
    page = next(iter(sorted((folder / "validations" / suite).rglob("*.html"))))
    rows = "".join(
        "<tr>"
        f'<td class="{"passed" if finding.passed else "failed"}">'
        f"{'holds' if finding.passed else 'fails'}</td>"
        f"<td>{html.escape(finding.rule.type)}</td>"
        f"<td>{html.escape(finding.rule.column or 'rows')}</td>"
        f"<td>{html.escape(finding.observed)}</td>"
        f"<td>{html.escape(finding.rule.limit())}</td>"
        "</tr>\n"
        for finding in findings
    )
    return (
        f"<h2>{html.escape(suite)}</h2>\n"
        f'<p><a href="{page.relative_to(folder).as_posix()}">Validation result</a>, '
        f'<a href="expectations/{suite}.html">expectation suite</a></p>\n'
        "<table><tr><th></th><th>expectation</th><th>column</th><th>observed</th>"
        f"<th>expected</th></tr>\n{rows}</table>\n"
    )


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
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e8ea; }
  a { color: #8ab4f8; } td, th { border-color: #30363d; } .passed { color: #6fdd8b; }
  .failed { color: #ff8a80; } }
"""
