"""Text of others stays text in Markdown."""

import pytest
from markdown_it import MarkdownIt

from tasks.evaluation import markdown

ATTACKS = [
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "# heading",
    "- item",
    "1. item",
    "**bold** _em_ __strong__ ~~gone~~",
    "a | b",
    "`code`",
    "&lt;script&gt;",
    "one\n\n# two",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_it_is_shown_as_it_is(text: str) -> None:
    (opening, inline, closing) = (
        MarkdownIt().enable(["table", "strikethrough"]).parse(markdown.escape(text))
    )
    assert (opening.tag, closing.tag) == ("p", "p")
    assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    shown = "".join(child.content for child in inline.children or [])
    assert shown == " ".join(text.split())


def test_names_stay_readable() -> None:
    assert markdown.escape("exact_match of 0.905 (95%)") == "exact_match of 0.905 (95%)"


def test_code_holds_backticks() -> None:
    assert markdown.code("a`b") == "``a`b``"
    assert markdown.code("`") == "`` ` ``"
