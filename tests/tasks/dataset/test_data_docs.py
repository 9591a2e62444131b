"""The index of the Data Docs: readable in words, and on a narrow screen."""

import re
from pathlib import Path

import pytest

from tasks.dataset import data_docs
from tasks.dataset.checklist import Score
from tasks.dataset.expectations import VALUES, Finding, Rule

LOW = Rule(VALUES, "a<b", 1, None)


@pytest.fixture
def index(tmp_path: Path) -> str:
    """The index of a site with one suite and one score."""
    page = tmp_path / "validations" / "chat-train" / "all" / "result.html"
    page.parent.mkdir(parents=True)
    page.write_text('<html><head><link href="https://elsewhere"></head><script>x</script></html>')
    (tmp_path / "static").mkdir()
    findings = [
        Finding("chat-train", LOW, False, "3 of 4 rows outside"),
        Finding("chat-train", Rule("ExpectColumnMedianToBeBetween", "c", 1, None), True, "2"),
    ]
    scores = [Score("length", 0.5, 0.9), Score("clusters", None, 0.5)]
    data_docs.finish(tmp_path, findings, scores, None)
    assert "elsewhere" not in page.read_text()
    assert "<script" not in page.read_text()
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_expectations_are_in_words_with_their_type_as_title(index: str) -> None:
    assert f'<span title="{VALUES}">every value within limits</span>' in index
    assert ">column median to be between</span>" in index
    assert VALUES not in re.sub(r"<[^>]*>", "", index)


def test_each_cell_names_its_head_for_a_narrow_screen(index: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in index
    assert '<td data-head="column">a&lt;b</td><td data-head="observed">3 of 4 rows' in index
    assert f'<td data-head="expected">{LOW.limit()}</td>' in index
    assert '<td data-head="value">0.5000</td><td data-head="at least">0.9</td>' in index


def test_verdicts_are_told(index: str) -> None:
    assert "2 expectations, 1 failed." in index
    assert index.count('<span class="failed">fails</span>') == 2
    assert '<td data-head="">not judged</td>' in index
    assert "judged after the rows that broke a rule were rejected" in index
