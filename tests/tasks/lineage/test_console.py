from __future__ import annotations

import pytest

from tasks.lineage import console


@pytest.fixture(autouse=True)
def logger():
    """The logger is one for the whole process: leave it as it was."""
    before = console.log.handlers, console.log.propagate, console.log.level
    yield
    console.log.handlers, console.log.propagate = before[:2]
    console.log.setLevel(before[2])


def test_a_line_names_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup("sft")
    console.log.info("epoch %d", 1)
    assert capsys.readouterr().err == "sft      epoch 1\n"


def test_away_from_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.setup("sft")
    with console.progress("step", total=2) as advance:
        advance(1, "loss 0.5")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "LINE_EVERY_SECONDS", 0)
    with console.progress("step", total=2) as advance:
        advance(2, "loss 0.25")
    assert capsys.readouterr().err == "sft      step 2/2 loss 0.25\n"
