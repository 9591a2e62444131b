"""The contaminated share on its way from `format` to the scores."""

import json
from pathlib import Path
from typing import Any

import pytest
from prepared_data import contamination as stated

from tasks.evaluation import contamination
from tasks.evaluation.statistics import proportion
from tasks.lineage.stage import StageError

ROWS = {"test": 8, "hard_test": 3, "regression": 0}


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / contamination.FILE).write_text(text)
    return folder


def test_shares_have_an_interval(tmp_path: Path) -> None:
    data = write(tmp_path, stated({**ROWS, "mmlu.jsonl": 50}, {"test": 2, "mmlu.jsonl": 0}))
    found = contamination.read(data, ROWS)
    assert list(found) == ["test", "hard_test", "regression", "mmlu.jsonl"]
    assert found["test"].share(0.95) == {"value": 0.25, "low": 0.071479, "high": 0.590725}
    assert found["mmlu.jsonl"].share(0.95)["value"] == 0.0


def test_the_share_is_of_what_could_be_judged(tmp_path: Path) -> None:
    entry = {"rows": 8, "judged": 4, "contaminated": 1, "share": 0.25}
    found = contamination.read(write(tmp_path, {"test": entry}), {"test": 8})["test"]
    assert found == contamination.Contamination(rows=8, judged=4, contaminated=1)
    assert found.share(0.95) == proportion(1, 4, 0.95)


def test_what_was_not_judged_has_no_value(tmp_path: Path) -> None:
    found = contamination.read(write(tmp_path, stated(ROWS, {"test": 2})), ROWS)
    assert found["hard_test"].share(0.95) == {"value": None, "low": None, "high": None}
    assert found["regression"].share(0.95) == contamination.NOT_JUDGED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (stated({"test": 8, "hard_test": 3}, {}), "says nothing of regression; "),
        (stated({**ROWS, "test": 9}, {}), "speaks of 9 rows in test, which has 8; "),
        ("{", r"is not {split: {rows, judged, contaminated, share}}; "),
        ("[]", r"is not {split: {rows, judged, contaminated, share}}; "),
        ({"test": {"rows": 8}}, r"is not {split: {rows, judged, contaminated, share}}; "),
        ({"test": {"rows": 8, "judged": 9, "contaminated": 0, "share": 0.0}}, "is not {split: "),
        ({"test": {"rows": 8, "judged": 7, "contaminated": 8, "share": 1.1}}, "is not {split: "),
    ],
)
def test_stale_data(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(StageError) as error:
        contamination.read(write(tmp_path, content), ROWS)
    assert str(error.value).startswith(f"{tmp_path / 'contamination.json'} {said}")
    assert str(error.value).endswith("; `dvc repro -s -f format` writes it anew")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"contamination.json does not exist, and no score stands"):
        contamination.read(tmp_path, ROWS)
