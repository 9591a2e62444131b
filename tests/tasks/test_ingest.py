"""Stage ingest: what goes out, what is rejected, and what stops it."""

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from tasks import ingest
from tasks.lineage.stage import GateError, StageError
from tasks.params import Ingest, Params

CHAT = {
    "file": "chat.jsonl",
    "read_as": None,
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


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and kept rejects go below the current folder."""
    monkeypatch.chdir(tmp_path)


def section(*sources: dict[str, Any], share: float = 1.0, line: int = 1000) -> Ingest:
    values = {"max_line_bytes": line, "hidden_characters": "reject", "max_reject_share": share}
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
    bad = json.dumps({**ROW, "text": 5, "label": "anna@example.com +44 7700 900123"}).encode()
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
            "detail": "column 'text' is a number, not a string; write it as a string, or as a "
            "field of its own in an answer's mapping",
            "snippet": '{"id": "1", "at": "2026-07-06T10:00:00Z", "text": 5, '
            '"label": "[email] [phone]"}',
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
    files = [
        "chat.jsonl",
        "missing.jsonl",
        "../a.jsonl",
        "notes.txt",
        "chat.jsonl",
        "no/*.jsonl",
        "*",
    ]
    with pytest.raises(StageError) as caught:
        run(tmp_path, section(*({**CHAT, "file": name} for name in files)))
    place = tmp_path / "raw"
    holds = "which holds chat.jsonl, more.csv, notes.txt"
    told = [line.split("].file ", 1)[1] for line in str(caught.value).splitlines()]
    assert told[0] == (
        f"is 'missing.jsonl', not found below {place}, {holds}; put the file there, or mend its name"
    )
    assert told[1].startswith(
        "is '../a.jsonl', which leads out of the raw data; put the file there, or"
    )
    assert told[2].startswith("is 'notes.txt', whose container is not known; write read_as: {conta")
    assert told[3] == "is 'chat.jsonl', which an entry above reads already; drop one"
    assert told[4].startswith(
        f"is 'no/*.jsonl', which matches nothing below {place}, {holds}; mend"
    )
    assert told[5].startswith("is '*', which matches notes.txt, whose container is not known")


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    raw(tmp_path)
    (tmp_path / "out.jsonl").write_bytes(lines(ROW))
    (tmp_path / "raw" / "chat.jsonl").symlink_to(tmp_path / "out.jsonl")
    with pytest.raises(StageError, match=r"chat.jsonl is a link that leads out of"):
        run(tmp_path, section(CHAT))


def test_a_glob_reads_its_files_in_order_and_names_them(tmp_path: Path) -> None:
    raw(tmp_path)
    for name in ("b", "a"):
        (tmp_path / "raw" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines(ROW, b"null")))
    _, rejects = run(tmp_path, section({**CHAT, "file": "*.jsonl.gz"}))
    found = [record["source"] for record in read(tmp_path / "out" / "chat.jsonl")]
    assert found == ["a.jsonl.gz", "b.jsonl.gz"]
    assert [(r["file"], r["line"], r["byte"]) for r in rejects] == [
        ("a.jsonl.gz", 2, len(lines(ROW))), ("b.jsonl.gz", 2, len(lines(ROW))),
    ]  # fmt: skip


PACKED = {
    "chat.jsonl.gz": gzip.compress,
    "chat.jsonl.zst": zstandard.compress,
    "chat.ndjson": lambda content: content,
}


@pytest.mark.parametrize("name", PACKED)
def test_compressed_files_are_streams(tmp_path: Path, name: str) -> None:
    raw(tmp_path)
    (tmp_path / "raw" / name).write_bytes(PACKED[name](lines(ROW)))
    metrics, _ = run(tmp_path, section({**CHAT, "file": name}))
    assert metrics["rows_out"] == 1


@pytest.mark.parametrize("name", ["chat.jsonl.gz", "chat.jsonl.zst"])
def test_a_cut_stream_fails_the_stage(tmp_path: Path, name: str) -> None:
    raw(tmp_path)
    content = PACKED[name](lines(*({**ROW, "id": str(n)} for n in range(500))))
    (tmp_path / "raw" / name).write_bytes(content[:-9])
    with pytest.raises(StageError, match=rf"{name}: damaged behind byte \d+ of what it unpacks to"):
        run(tmp_path, section({**CHAT, "file": name}))


def zipped(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return target.getvalue()


MEMBERS = {
    "in/a.jsonl": lines(ROW, b"null"),
    "README.md": b"# not data",
    "../b.jsonl": lines(ROW),
    "/c.jsonl": lines(ROW),
    "d.jsonl.gz": gzip.compress(lines(ROW)),
}


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tgz", "x.tar", "x.tar.zst"])
def test_members_of_an_archive_are_files(tmp_path: Path, name: str) -> None:
    raw(tmp_path)
    content = zipped(MEMBERS) if name == "x.zip" else tarred(MEMBERS, "w")
    if name.endswith("gz"):
        content = gzip.compress(content)
    if name.endswith("zst"):
        content = zstandard.compress(content)
    (tmp_path / "raw" / name).write_bytes(content)
    metrics, rejects = run(tmp_path, section({**CHAT, "file": name}))
    found = [record["source"] for record in read(tmp_path / "out" / "chat.jsonl")]
    assert found == [f"{name}!in/a.jsonl", f"{name}!d.jsonl.gz"]
    links = [] if name == "x.zip" else [(name, 6, "outside")]
    assert [(r["file"], r["line"], r["reason"]) for r in rejects] == [
        (f"{name}!in/a.jsonl", 2, "not_an_object"),
        (name, 3, "outside"),
        (name, 4, "outside"),
        *links,
    ]
    assert metrics["rows_in"] == metrics["rows_out"] + len(rejects)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out", "rejected.jsonl"}


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_damaged_archive_fails_the_stage(tmp_path: Path, name: str) -> None:
    raw(tmp_path)
    content = zipped(MEMBERS) if name == "x.zip" else tarred(MEMBERS)
    (tmp_path / "raw" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(StageError, match=r"damaged"):
        run(tmp_path, section({**CHAT, "file": name}))


def test_json_arrays_and_parquet_number_their_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": str(n)} for n in range(3)]
    raw(tmp_path, a_json=json.dumps(rows).encode())
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / "b.parquet")
    plain = {**CHAT, "map": None, "columns": None}
    run(tmp_path, section({**plain, "file": "a.json"}, {**plain, "file": "b.parquet"}))
    found = [(record["source"], record["id"]) for record in read(tmp_path / "out" / "chat.jsonl")]
    assert found[:2] == [("a.json", "row-0000001"), ("a.json", "row-0000002")]
    assert found[3:5] == [("b.parquet", "row-0000001"), ("b.parquet", "row-0000002")]


def test_a_row_without_bytes_is_shown_all_the_same(tmp_path: Path) -> None:
    raw(tmp_path)
    rows = [{"prompt": 5, "completion": "a@example.com"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / "b.parquet")
    plain = {**CHAT, "map": None, "columns": None, "file": "b.parquet"}
    _, (reject,) = run(tmp_path, section(plain))
    assert (reject["line"], reject["byte"], reject["reason"]) == (1, None, "wrong_type")
    assert reject["snippet"] == '{"prompt": 5, "completion": "[email]"}'


def test_a_pinned_url_is_brought_once(tmp_path: Path) -> None:
    import fsspec

    content = lines(ROW)
    raw(tmp_path)
    pin = hashlib.sha256(content).hexdigest()
    memory = fsspec.filesystem("memory")
    memory.pipe("/h1/chat.jsonl", content)
    url = {**CHAT, "file": f"memory://h1/chat.jsonl#sha256={pin}"}
    run(tmp_path, section(url))
    (record,) = read(tmp_path / "out" / "chat.jsonl")
    assert record["source"] == "memory://h1/chat.jsonl"
    downloads = tmp_path / ".tunetrail" / "downloads"
    assert [path.name for path in downloads.iterdir()] == [pin]
    memory.rm("/h1/chat.jsonl")
    shutil.rmtree(tmp_path / "out")
    run(tmp_path, section(url))


def test_another_content_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    import fsspec

    raw(tmp_path)
    fsspec.filesystem("memory").pipe("/h1/other.jsonl", lines(ROW))
    found = hashlib.sha256(lines(ROW)).hexdigest()
    with pytest.raises(StageError) as caught:
        run(tmp_path, section({**CHAT, "file": f"memory://h1/other.jsonl#sha256={'0' * 64}"}))
    assert str(caught.value) == (
        f"memory://h1/other.jsonl: its sha256 is {found}, but params.yaml pins {'0' * 64}; it has "
        "changed or was cut: look at it, then pin the new one"
    )
    assert list((tmp_path / ".tunetrail" / "downloads").iterdir()) == []


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
    assert text.splitlines()[4:] == ["All of them: .tunetrail/rejected/rejected.jsonl"]
    assert len(read(tmp_path / ".tunetrail" / "rejected" / "rejected.jsonl")) == 11


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


def columns(kind: str) -> bytes:
    table = pa.Table.from_pylist([{**ROW, "id": str(number)} for number in range(5)])
    target = io.BytesIO()
    if kind == "parquet":
        parquet.write_table(table, target)
    else:
        new = ipc.new_file if kind == "arrow" else ipc.new_stream
        with new(target, table.schema) as writer:
            writer.write_table(table)
    return target.getvalue()


FIVE = [{**ROW, "id": str(number)} for number in range(5)]
CELLS = b"id,at,text,label\n" + b"".join(
    f'{row["id"]},{row["at"]},"{row["text"]}",{row["label"]}\n'.encode() for row in FIVE
)
CONTENTS: dict[str, bytes] = {
    "a.jsonl": lines(*FIVE),
    "a.json": json.dumps(FIVE, indent=1).encode(),
    "b.json": json.dumps(FIVE).encode(),
    "a.csv": CELLS,
    "a.tsv": CELLS.replace(b",", b"\t"),
    "a.jsonl.gz": gzip.compress(lines(*FIVE), 0),
    "a.jsonl.zst": zstandard.compress(lines(*FIVE)),
    "a.zip": zipped({"a.jsonl": lines(*FIVE), "b.csv": CELLS}),
    "a.tar": tarred({"a.jsonl": lines(*FIVE), "b.csv": CELLS}, "w"),
    "a.parquet": columns("parquet"),
    "a.arrow": columns("arrow"),
    "b.arrow": columns("stream"),
}


@pytest.mark.parametrize("name", CONTENTS)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(
            st.floats(0, 1), st.integers(0, 4), st.binary(max_size=3) | st.sampled_from(b'{}[]",')
        ),
        max_size=6,
    ),
    instead=st.none() | st.binary(max_size=60),
)
def test_no_bytes_break_a_container(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    edits: list[tuple[float, int, bytes | int]],
    instead: bytes | None,
) -> None:
    content = CONTENTS[name] if instead is None else instead
    for where, removed, added in edits:
        at = int(where * len(content))
        new = bytes([added]) if isinstance(added, int) else added
        content = content[:at] + new + content[at + removed :]
    folder = tmp_path_factory.mktemp("any")
    raw(folder)
    (folder / "raw" / name).write_bytes(content)
    wanted = section({**CHAT, "file": name})
    try:
        metrics, rejects = run(folder, wanted)
    except (StageError, GateError):
        return
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
