"""The champion's score on arrivals against its score when it was registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drift_rows import LIKE, chat, params

from tasks.drift import quality
from tasks.drift.quality import Quality, Registered
from tasks.evaluation.metrics import Answered
from tasks.lineage.champion import Champion


@pytest.fixture
def registered(tmp_path: Path) -> Registered:
    """A champion that was right on 90 of 100 test rows."""
    rows = [
        {
            "id": f"{at}", "source": LIKE, "split": "test", "expected": "yes",
            "answers": {"base": "no", "dpo": "yes" if at < 90 else "no"},
        }
        for at in range(100)
    ]  # fmt: skip
    rows.append({**rows[0], "source": "other.jsonl", "answers": {"dpo": "no"}})
    rows.append({**rows[0], "split": "regression", "answers": {"dpo": "no"}})
    path = tmp_path / quality.PREDICTIONS
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Registered("accuracy", "dpo", path, None, 8)


def measured(
    registered: Registered, right: int, rows: int, monkeypatch: pytest.MonkeyPatch, sources: int = 1
) -> Quality | None:
    """What is said of a champion that answers so many of the arrivals right."""
    arrived = [chat(at, f"text {at}", "yes") for at in range(rows)]

    def ask(drawn: Any, *_: Any) -> tuple[list[Any], list[Answered]]:
        given = ["yes" if int(row["id"]) < right else "no" for row in drawn]
        return list(drawn), [Answered("yes", answer, None, 0) for answer in given]

    monkeypatch.setattr(quality, "_ask", ask)
    champion = Champion(Path("champion"))
    return quality.measure(LIKE, arrived, champion, registered, params().drift, 1, 1, sources)


def test_a_fall_fires(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(registered, 100, 200, monkeypatch)
    assert found is not None
    assert (found["before"], found["now"]) == (0.9, 0.5)
    assert (found["rows_before"], found["rows_now"]) == (100, 200)
    assert found["fires"]
    assert found["confidence"] == pytest.approx(1 - 2 * 0.01 / 3, abs=1e-6)
    assert found["says"].startswith(
        "the champion's accuracy on the arrivals is 0.500, and was 0.900 on its test (difference "
        "-0.400, 99.3% interval -0."
    )
    assert len(found["look_at"]) == quality.SHOWN
    assert found["look_at"][0]["why"] == "the champion answers no"


def test_several_sources_share_the_false_alarms(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(registered, 100, 200, monkeypatch, sources=4)
    assert found is not None
    assert found["confidence"] == pytest.approx(1 - 2 * 0.01 / 3 / 4, abs=1e-6)


@pytest.mark.parametrize("right", [176, 200])
def test_a_small_fall_and_a_rise_do_not(
    registered: Registered, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(registered, right, 200, monkeypatch)
    assert found is not None
    assert not found["fires"]


def test_few_rows_say_nothing(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(registered, 0, quality.LEAST_ROWS - 1, monkeypatch) is None


def test_the_interval_of_shares_is_newcombes() -> None:
    """56 of 70 against 48 of 80: table II of Newcombe (1998), method 10."""
    left, right = [1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32
    found = quality.difference(left, right, 0.95)
    assert found["value"] == pytest.approx(0.2)
    assert found["low"] == pytest.approx(0.0524, abs=5e-5)
    assert found["high"] == pytest.approx(0.3339, abs=5e-5)


def test_the_interval_of_other_scores_is_welchs() -> None:
    from scipy.stats import ttest_ind

    left, right = [0.1, 0.4, 0.35, 0.8], [0.5, 0.9, 0.7]
    found = quality.difference(left, right, 0.9)
    wanted = ttest_ind(left, right, equal_var=False).confidence_interval(0.9)
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_a_champion_answers(registered: Registered, lively_model: Path, tmp_path: Path) -> None:
    (tmp_path / "champion").mkdir()
    (tmp_path / "champion" / "merged").symlink_to(lively_model)
    arrived = [chat(at, f"the truck is late {at}", "yes") for at in range(40)]
    arrived.append(chat(99, "too long " * 3000, "yes"))
    found = quality.measure(
        LIKE, arrived, Champion(tmp_path / "champion"), registered, params().drift, 1, 1, 1
    )
    assert found is not None
    assert found["rows_now"] == 40
    assert found["now"] < 0.5
    assert found["look_at"][0]["prompt"].startswith("the truck is late")
