"""Stage ingest: what goes out, what is rejected, and what stops it."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import ingest
from tasks.lineage.stage import GateError, StageError
from tasks.params import Ingest, Params

CHAT = {
    "file": "chat.jsonl",
    "kind": "chat",
    "role": "train",
    "map": {
        "id": "{id}",
        "time": "{at}",
        "user": "{text}",
        "assistant": {"label": "{label}"},
    },
    "columns": ["id", "at", "text", "label"],
}
ROW = {"id": "1", "at": "2026-07-06T10:00:00Z", "text": "where is it", "label": "status"}


def section(*sources: dict[str, Any], share: float = 1.0, line: int = 1000) -> Ingest:
    values = {"sources": sources, "max_line_bytes": line, "max_reject_share": share}
    return Ingest.model_validate({**values, "sources": list(sources)})


def lines(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()) + b"\n"
        for row in rows
    )


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(folder: Path, wanted: Ingest) -> tuple[Any, list[Any]]:
    """Metrics and rejects of a run in a folder that has raw/."""
    metrics = ingest.run(folder / "raw", folder / "out", folder / "rejected.jsonl", wanted)
    return metrics, read(folder / "rejected.jsonl")


def raw(folder: Path, **files: bytes) -> None:
    (folder / "raw").mkdir()
    for name, content in files.items():
        (folder / "raw" / name.replace("_", ".")).write_bytes(content)


def test_rows_become_records_in_three_files(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=lines(ROW))
    metrics, rejects = run(tmp_path, section(CHAT))
    assert read(tmp_path / "out" / "chat.jsonl") == [
        {
            "id": "1",
            "source": "chat.jsonl",
            "role": "train",
            "time": "2026-07-06T10:00:00Z",
            "group": None,
            "messages": [
                {"role": "user", "content": "where is it"},
                {"role": "assistant", "content": '{"label":"status"}'},
            ],
        }
    ]
    assert (
        read(tmp_path / "out" / "preference.jsonl") == read(tmp_path / "out" / "text.jsonl") == []
    )
    assert rejects == []
    assert metrics == {
        "rows_in": 1,
        "rows_out": 1,
        "rows_rejected": 0,
        "files": {"chat.jsonl": {"rows_in": 1, "rows_out": 1, "rejected": {}}},
    }


def test_a_reject_says_where_and_why_and_shows_no_personal_data(tmp_path: Path) -> None:
    bad = json.dumps({**ROW, "text": 5, "at": "anna@example.com +44 7700 900123"}).encode()
    raw(tmp_path, chat_jsonl=lines(ROW, bad))
    _, rejects = run(tmp_path, section(CHAT))
    assert rejects == [
        {
            "source": "chat.jsonl",
            "file": "chat.jsonl",
            "line": 2,
            "byte": len(lines(ROW)),
            "id": None,
            "reason": "wrong_type",
            "detail": "column 'text' is a number, not a string",
            "snippet": '{"id": "1", "at": "[email] [phone]", "text": 5, "label": "status"}',
        }
    ]


FAULTS = {
    "missing_column": {key: ROW[key] for key in ("id", "at", "text")},
    "extra_column": {**ROW, "priority": "high"},
    "empty_text": {**ROW, "text": ""},
    "bad_time": {**ROW, "at": "yesterday"},
    "duplicate_id": ROW,
    "truncated_json": lines(ROW)[:30],
    "not_an_object": b"[]",
    "line_too_long": {**ROW, "text": "x" * 1000},
}


def test_every_row_goes_out_or_is_rejected(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=lines(ROW, *FAULTS.values(), {**ROW, "id": "2"}))
    metrics, rejects = run(tmp_path, section(CHAT))
    assert [reject["reason"] for reject in rejects] == list(FAULTS)
    assert [reject["line"] for reject in rejects] == list(range(2, 2 + len(FAULTS)))
    assert metrics["files"]["chat.jsonl"] == {
        "rows_in": len(FAULTS) + 2,
        "rows_out": 2,
        "rejected": dict.fromkeys(sorted(FAULTS), 1),
    }


def test_csv_is_read_by_the_same_rules(tmp_path: Path) -> None:
    content = b'id,at,text,label\n1,,"a, ""b""",x\n2,2026-01-01,,x\n3,2026-01-01,c\n'
    raw(tmp_path, chat_csv=content)
    _, rejects = run(tmp_path, section({**CHAT, "file": "chat.csv"}))
    (record,) = read(tmp_path / "out" / "chat.jsonl")
    assert record["time"] is None
    assert record["messages"][0]["content"] == 'a, "b"'
    assert [(r["line"], r["byte"], r["reason"]) for r in rejects] == [
        (3, 33, "empty_text"),
        (4, 49, "column_count"),
    ]


def test_a_csv_header_is_compared_once(tmp_path: Path) -> None:
    raw(tmp_path, chat_csv=b"id,text\n1,a\n")
    with pytest.raises(StageError) as caught:
        run(tmp_path, section({**CHAT, "file": "chat.csv"}))
    assert str(caught.value) == (
        "chat.csv:1: the columns are id, text, but params.yaml lists id, at, text, label; "
        "correct `columns` of this source, or the file"
    )


def test_ids_are_unique_within_a_source_only(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=lines(ROW), more_jsonl=lines(ROW))
    _, rejects = run(tmp_path, section(CHAT, {**CHAT, "file": "more.jsonl"}))
    assert rejects == []


def test_all_faults_of_the_sources_are_told_at_once(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=lines(ROW), more_csv=b"", notes_txt=b"")
    files = ["chat.jsonl", "missing.jsonl", "../a.jsonl", "notes.txt", "chat.jsonl"]
    with pytest.raises(StageError) as caught:
        run(tmp_path, section(*({**CHAT, "file": name} for name in files)))
    place = tmp_path / "raw"
    assert str(caught.value).splitlines() == [
        f"params.yaml: ingest.sources[1].file is 'missing.jsonl', but {place} has no such file; "
        "it has chat.jsonl, more.csv",
        f"params.yaml: ingest.sources[2].file is '../a.jsonl', which leads out of {place}; "
        "put the file there",
        "params.yaml: ingest.sources[3].file is 'notes.txt', which must end in .jsonl or .csv; "
        "convert the file",
        "params.yaml: ingest.sources[4].file is 'chat.jsonl', which an entry above reads already; "
        "drop one",
    ]


def test_only_chats_measure_regression(tmp_path: Path) -> None:
    raw(tmp_path, a_jsonl=lines({"text": "t"}))
    source = {"file": "a.jsonl", "kind": "text", "role": "regression", "map": None, "columns": None}
    with pytest.raises(StageError, match="role is 'regression', which only kind chat can be"):
        run(tmp_path, section(source))


def test_a_source_without_rows_is_a_mistake(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=b"")
    with pytest.raises(StageError, match=r"chat.jsonl holds no rows; fill it, or remove it from"):
        run(tmp_path, section(CHAT))


def test_too_many_rejects_fail_the_stage_and_say_which(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=lines(ROW, *FAULTS.values(), *[b"null"] * 3), good_jsonl=lines(ROW))
    with pytest.raises(GateError) as caught:
        run(tmp_path, section(CHAT, {**CHAT, "file": "good.jsonl"}, share=0.05))
    text = str(caught.value)
    assert text.splitlines()[0] == (
        "chat.jsonl: 11 of 12 rows (91.7%) rejected, ingest.max_reject_share allows 5.0%; "
        "commonest: not_an_object 4, bad_time 1, duplicate_id 1. "
        "Mend the rows, or raise ingest.max_reject_share. The first:"
    )
    assert text.splitlines()[1].startswith(
        "  chat.jsonl:2 (byte 84) missing_column: column 'label'"
    )
    assert len(text.splitlines()) == 4


def test_a_share_at_the_limit_passes(tmp_path: Path) -> None:
    raw(tmp_path, chat_jsonl=lines(ROW, b"null"))
    run(tmp_path, section(CHAT, share=0.5))


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        raw(folder, chat_jsonl=lines(ROW, *FAULTS.values()))
        metrics, _ = run(folder, section(CHAT))
        files = sorted(path for path in folder.rglob("*.jsonl") if "raw" not in path.parts)
        found.append((json.dumps(metrics), [path.read_bytes() for path in files]))
    assert found[0] == found[1]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_the_bytes_are_the_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    content = lines(*({**ROW, "id": str(number)} for number in range(5)))
    for place, removed, added in edits:
        content = content[:place] + added + content[place + removed :]
    raw(folder, chat_jsonl=content)
    metrics, rejects = run(folder, section(CHAT, line=150))
    assert metrics["rows_in"] == metrics["rows_out"] + len(rejects)
    assert len(read(folder / "out" / "chat.jsonl")) == metrics["rows_out"]


REASONS = {
    "truncated_line": "truncated_json",
    "null_line": "not_an_object",
    "scalar_line": "not_an_object",
    "array_line": "not_an_object",
    "not_utf8": "not_utf8",
    "missing_category": "missing_column",
    "text_is_number": "wrong_type",
    "empty_text": "empty_text",
    "repeated_key": "duplicate_key",
    "nul_in_text": "nul",
    "extra_key": "extra_column",
    "duplicate_id": "duplicate_id",
}
"""What ingest calls the faults that data/raw/README.md lists."""


def test_the_shipped_data_loses_what_its_readme_says(
    tmp_path: Path, root: Path, params: Params
) -> None:
    page = (root / "data/raw/README.md").read_text(encoding="utf-8")
    planted = re.findall(r"^\| `(\w+)` \| shipments.jsonl \| (\d+) \|", page, re.MULTILINE)
    expected: Counter[str] = Counter()
    for kind, count in planted:
        if kind in REASONS:
            expected[REASONS[kind]] += int(count)
    rejected = tmp_path / "rejected.jsonl"
    metrics = ingest.run(root / "data/raw", tmp_path / "out", rejected, params.ingest)
    assert metrics["files"].pop("shipments.jsonl")["rejected"] == expected
    assert all(counts["rejected"] == {} for counts in metrics["files"].values())
    places = dict(re.findall(r"^\| `(\w+)` \| (line [^|]+) \|$", page, re.MULTILINE))
    told = {int(n) for kind in REASONS for n in re.findall(r"line (\d+)", places[kind])}
    assert {reject["line"] for reject in read(rejected)} == told
