"""The page in a real browser: votes by keyboard, progress that stays, a file that can be imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.voting import page, pairs

pytest_plugins = ("answered", "browsers")
pytestmark = pytest.mark.browser

ROWS = 12
PERSON = "Zoë <zoe@example.com>"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> page.Export:
    """A page of 12 pairs, in page.html."""
    from answered import write_predictions

    monkeypatch.chdir(tmp_path)
    Path("models/report").mkdir(parents=True)
    write_predictions()
    drawn = pairs.draw(Path("models/report/predictions.jsonl"), "dpo", "base", ROWS, 1)
    exported = page.export("shipments-candidates@1", drawn, "Right is <b>better</b>.")
    Path("page.html").write_text(exported.html, encoding="utf-8")
    return exported


@pytest.fixture
def opened(browser: Any, made: page.Export, tmp_path: Path) -> Any:
    """The page; whatever it asks of a network or complains of fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, accept_downloads=True)
    sheet = context.new_page()
    faults: list[str] = []
    sheet.on("console", lambda message: faults.append(message.text))
    sheet.on("pageerror", lambda error: faults.append(str(error)))
    sheet.on("request", lambda request: faults.append(request.url))
    sheet.goto(tmp_path.joinpath("page.html").as_uri())
    assert faults.pop(0).startswith("file:")
    yield sheet
    context.close()
    assert [fault for fault in faults if not fault.startswith(("file:", "blob:"))] == []


def begin(sheet: Any) -> None:
    sheet.fill("#person", PERSON)
    sheet.keyboard.press("Enter")


def title(sheet: Any) -> str:
    return str(sheet.inner_text("#title"))


def downloaded(sheet: Any) -> page.VotesFile:
    with sheet.expect_download() as waiting:
        sheet.click("main:not([hidden]) .download")
    path = Path("votes") / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return page.read_votes(path)


def test_votes_by_keyboard_are_kept_and_counted(opened: Any, made: page.Export) -> None:
    begin(opened)
    final = {"final": ("1", "ArrowLeft"), "other": ("2", "ArrowRight")}
    for number in range(4):
        assert title(opened) == f"{number + 1} of {ROWS}: which is better?"
        opened.keyboard.press(final[made.key[str(number)]["first"]][number % 2])
    opened.keyboard.press("Space")
    opened.keyboard.press("0")
    opened.reload()
    assert title(opened) == f"7 of {ROWS}: which is better?"
    for key in ("u", "Backspace", "x", "Tab"):
        opened.keyboard.press(key)
    assert title(opened) == f"5 of {ROWS}: which is better?"
    part = downloaded(opened)
    assert (part.person, part.export, part.version) == (
        PERSON,
        made.export,
        "shipments-candidates@1",
    )
    scores = part.scores(made.key)
    assert list(scores.values()) == [1.0] * 4
    opened.click("[data-side=tie]")  # the last way to vote is a finger
    for _ in range(ROWS - 5):
        opened.keyboard.press("1")
    assert opened.inner_text("h1:visible") == "Done. Thank you!"
    assert "all 12 pairs and called 1 of them a tie" in opened.inner_text("#summary")
    whole = downloaded(opened)
    assert whole.name == f"votes-{made.export[:8]}-Zoë-zoe.json"
    assert len(whole.scores(made.key)) == ROWS
    assert sorted(map(int, whole.votes)) == list(range(ROWS))


def test_somebody_else_in_the_same_browser(opened: Any, made: page.Export) -> None:
    """Votes under their own name, and nobody's votes are lost."""
    begin(opened)
    opened.keyboard.press("1")
    opened.keyboard.press("1")
    opened.reload()
    assert f"You vote as {PERSON}." in opened.inner_text("#compare")
    opened.click("#compare .other")
    opened.keyboard.type("Bob")
    opened.keyboard.press("Enter")
    assert "You vote as Bob." in opened.inner_text("#compare")
    assert title(opened) == f"1 of {ROWS}: which is better?"
    opened.keyboard.press("0")
    bob = downloaded(opened)
    assert (bob.person, list(bob.scores(made.key).values())) == ("Bob", [0.5])
    opened.reload()
    opened.click("#compare .other")
    begin(opened)
    zoe = downloaded(opened)
    assert (zoe.person, len(zoe.votes)) == (PERSON, 2)


def test_what_a_model_wrote_is_text(opened: Any, made: page.Export) -> None:
    sly = next(int(number) for number, pair in made.key.items() if pair["row"] == "s.jsonl/00")
    begin(opened)
    for _ in range(sly):
        opened.keyboard.press("0")
    shown = [opened.inner_text("#first"), opened.inner_text("#second")]
    assert any(text.startswith("</script><script>document.title") for text in shown)
    assert opened.title() == "Which answer is better? shipments-candidates@1"
    assert opened.query_selector("#answers img, #answers script") is None
    assert "Right is <b>better</b>." in opened.text_content("#compare")


def test_keys_can_be_switched_off(opened: Any) -> None:
    begin(opened)
    opened.uncheck("#keys")
    opened.keyboard.press("1")
    assert title(opened) == f"1 of {ROWS}: which is better?"
    opened.check("#keys")
    opened.focus("[data-side=tie]")
    opened.keyboard.press("Space")  # a button that has the focus is pressed, once
    assert title(opened) == f"2 of {ROWS}: which is better?"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    begin(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for button in opened.query_selector_all("#choices button"):
        box = button.bounding_box()
        assert box["height"] >= 44  # a finger's width
        assert box["y"] + box["height"] <= 800  # always in reach


def test_an_altered_page_says_so(opened: Any, made: page.Export) -> None:
    text = Path("page.html").read_text(encoding="utf-8")
    Path("page.html").write_text(text.replace("wrong 3", "right 3", 1), encoding="utf-8")
    opened.reload()
    assert "This page was altered since it was made." in opened.inner_text("#banner")
    assert opened.query_selector("main:visible") is None


def test_damaged_progress_is_left_alone(opened: Any, made: page.Export) -> None:
    for kept in (
        "{",
        "null",
        '{"person": "x", "votes": [[99, "first"], [0, "third"], [1, "tie"]]}',
    ):
        opened.evaluate(
            "([name, kept]) => localStorage.setItem(name, kept)",
            [f"tunetrail-review-{made.export}", kept],
        )
        opened.reload()
    assert title(opened) == f"2 of {ROWS}: which is better?"


def test_the_hash_is_the_one_of_everybody(opened: Any, made: page.Export) -> None:
    """The page reckons its own hash; names of any length and script must come out as in Python."""
    for person in ("a" * 55, "a" * 64, "名前 🙂 " * 20):
        opened.evaluate("localStorage.clear()")
        opened.reload()
        opened.fill("#person", person)
        opened.keyboard.press("Enter")
        opened.keyboard.press("1")
        assert downloaded(opened).person == person.strip()[:200]
