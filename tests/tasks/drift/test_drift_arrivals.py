"""Which arrivals are new and whole; what is wrong with the others is said in words."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drift_rows import LIKE, params

from data.generator import arrivals as examples
from tasks.drift import arrivals
from tasks.drift.arrivals import Arrival, Reading
from tasks.params import Incoming, Params

Find = Callable[..., list[Arrival]]


@pytest.fixture
def incoming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "incoming"
    folder.mkdir(parents=True)
    return folder


def settings(file: str = "*", **changes: object) -> Params:
    entry = Incoming(file=file, like=LIKE)
    drift = params().drift.model_copy(update={"incoming": [entry], **changes})
    return params().model_copy(update={"drift": drift})


def find(incoming: Path, *known: str, asked: Params | None = None) -> list[Arrival]:
    return arrivals.find(
        incoming, (asked or settings()).drift, set(known), wait=lambda seconds: None
    )


def read(incoming: Path, asked: Params | None = None) -> Reading:
    whole = [one for one in find(incoming, asked=asked) if one.why_not is None]
    return arrivals.read(whole, asked or settings(), incoming.parent / "read")


def why_not(found: list[Arrival]) -> str:
    (one,) = found
    assert one.why_not is not None
    return one.why_not


def test_a_file_is_read_as_the_pipeline_reads_it(incoming: Path) -> None:
    content = examples.content("none", 300, 1)
    (incoming / "week.jsonl").write_bytes(content)
    done = read(incoming)
    (file,) = done.files
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert (file["file"], file["like"], file["bytes"]) == ("week.jsonl", LIKE, len(content))
    side = done.read[LIKE].side()
    assert file["rows"] == 300 == side.rows
    assert file["rejected"] == sum(side.rejected.values()) == sum(file["reasons"].values()) > 0
    assert "personal_data_iban" in side.rejected  # of validate, beside those of ingest
    prompts = [row["messages"][0]["content"] for row in side.records]
    assert all(prompt.startswith("Message: ") for prompt in prompts)
    assert any("[EMAIL]" in prompt.upper() or "<EMAIL>" in prompt.upper() for prompt in prompts)
    assert not any("@example" in prompt for prompt in prompts)
    assert not (incoming.parent / "read" / file["sha256"]).exists()


def test_contradictions_are_rejected(incoming: Path) -> None:
    rows = [json.loads(line) for line in examples.content("none", 2, 1).splitlines()]
    rows += [{**rows[0], "id": "again", "category": "customs_hold", "eta": "unknown"}]
    (incoming / "week.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    side = read(incoming).read[LIKE].side()
    assert side.rejected == {"contradiction": 2}
    assert side.accepted == 1


def test_an_empty_file_says_so(incoming: Path) -> None:
    (incoming / "week.jsonl").touch()
    assert why_not(find(incoming)) == "is empty; write its rows, or remove it"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("week.jsonl", b"\xff\xfe{\x00}\x00", "is UTF-16; save it as UTF-8"),
        ("week.csv", b"id,text\n1,2\n", "the columns are id, text, but params.yaml lists"),
        ("week.jsonl.gz", gzip.compress(b"{}\n" * 500)[:30], "damaged behind byte"),
        ("week.zip", b"PK no archive", "damaged"),
        ("week.parquet", b"PAR1 nothing", ""),
    ],
    # not the content: gzip writes the time of day into it, and two workers must agree on the names
    ids=["UTF-16", "other columns", "half a gzip", "no archive", "no parquet"],
)
def test_a_file_that_cannot_be_read_says_why(
    incoming: Path, name: str, content: bytes, said: str
) -> None:
    (incoming / name).write_bytes(content)
    done = read(incoming)
    assert done.files == []
    assert said in why_not(done.left_out)
    assert not done.left_out[0].later


def test_rows_that_cannot_be_read_are_counted(incoming: Path) -> None:
    (incoming / "week.jsonl").write_bytes(b"not json\n" * 400)
    (file,) = read(incoming).files
    assert (file["rows"], file["rejected"]) == (400, 400)
    assert list(file["reasons"]) == ["invalid_json"]


def test_a_gigantic_file_is_left_out(incoming: Path) -> None:
    with (incoming / "week.jsonl").open("wb") as file:
        file.truncate(3 << 40)  # sparse: it takes no room, and reading it would take a day
    begin = time.monotonic()
    assert why_not(find(incoming)) == (
        "has 3,298,534,883,328 bytes, and drift.max_bytes is 1,000,000,000; split it, or raise that"
    )
    assert time.monotonic() - begin < 5


def test_a_small_file_that_unpacks_to_a_gigantic_one_is_left_out(incoming: Path) -> None:
    row = examples.content("none", 1, 1).splitlines()[0]
    lines = b"".join(row.replace(b"A-001", b"%06d" % at) + b"\n" for at in range(5000))
    (incoming / "week.jsonl.gz").write_bytes(gzip.compress(lines))
    done = read(incoming, settings(max_bytes=200_000))
    assert why_not(done.left_out) == (
        "unpacks to more than drift.max_bytes (200,000); split it, or raise that"
    )
    assert read(incoming).files[0]["rows"] == 5000
    (incoming / "week.jsonl.gz").write_bytes(gzip.compress(b"{not json\n" * 50_000))
    assert why_not(read(incoming, settings(max_bytes=200_000)).left_out).startswith("unpacks to")
    assert read(incoming).files[0]["rejected"] == 50_000
    assert not list(incoming.parent.glob("read/**/*.jsonl"))


def test_a_file_that_grows_is_left_for_the_next_check(incoming: Path) -> None:
    path = incoming / "week.jsonl"
    path.write_bytes(examples.content("none", 5, 1))

    def grow(seconds: float) -> None:
        assert seconds == 2.0
        with path.open("ab") as file:
            file.write(b"{}\n")

    drift = settings().drift
    (one,) = arrivals.find(incoming, drift, set(), grow)
    assert one.why_not == "is still being written; the next check looks at it again"
    assert one.later
    (one,) = find(incoming)
    assert one.why_not is None


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_check(incoming: Path) -> None:
    (incoming / "week.jsonl").write_bytes(examples.content("none", 5, 1))
    found = find(incoming)
    (incoming / "week.jsonl").write_bytes(examples.content("none", 5, 2))
    done = arrivals.read(found, settings(), incoming.parent / "read")
    assert done.files == []
    assert why_not(done.left_out) == "changed while it was read; the next check looks at it again"


@pytest.mark.parametrize("moment", [0, 4102444800])
def test_a_wrong_clock_keeps_no_file_out(incoming: Path, moment: int) -> None:
    """Times are compared, never read: 1970 and 2100 are as good as today."""
    path = incoming / "week.jsonl"
    path.write_bytes(examples.content("none", 5, 1))
    os.utime(path, (moment, moment))
    (one,) = find(incoming)
    assert one.why_not is None


def test_waiting_does_not_read_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the clock on the wall jumps"))
    begin = time.monotonic()
    arrivals._wait(0.12)
    assert 0.12 <= time.monotonic() - begin < 5


def test_what_the_champion_learned_from_is_not_new(incoming: Path) -> None:
    content = examples.content("none", 5, 1)
    (incoming / "week.jsonl").write_bytes(content)
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    for digest in (hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest(), git):
        assert find(incoming, digest) == []
    assert len(find(incoming, "0" * 32)) == 1


def test_a_file_that_came_twice_counts_once(incoming: Path) -> None:
    content = examples.content("none", 5, 1)
    (incoming / "a.jsonl").write_bytes(content)
    (incoming / "b.jsonl").write_bytes(content)
    (incoming / "round").symlink_to(".")  # a/round/round/round...
    found = find(incoming, asked=settings("**/*.jsonl"))
    assert [one.name for one in found if one.why_not is None] == ["a.jsonl"]
    assert found[1].why_not == "has the content of a.jsonl, which counts; remove one of them"
    assert all(one.later for one in found[1:])


@pytest.mark.parametrize(
    "name", [b"w\xff.jsonl", b"w\n.jsonl", "w\u2028.jsonl".encode(), b"\x1b[.jsonl"]
)
def test_a_name_that_cannot_be_printed(incoming: Path, name: bytes) -> None:
    (incoming / os.fsdecode(name)).write_bytes(b"{}\n")
    (one,) = find(incoming)
    assert why_not([one]) == "has a character in its name that is none to print; rename it"
    assert one.name.isprintable()


def test_a_file_that_may_not_be_read_or_is_gone_keeps_no_other_out(
    incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (incoming / name).write_bytes(examples.content("none", 5, ord(name[0])))
    right = arrivals.hashes.file_hash

    def refused(path: Path, kind: str) -> str:  # root may read everything
        if path.name == "b.jsonl":
            raise PermissionError(13, "Permission denied")
        return right(path, kind)

    monkeypatch.setattr(arrivals.hashes, "file_hash", refused)
    found = find(incoming, "0" * 32)
    assert [one.why_not for one in found] == [
        None,
        "cannot be read (Permission denied); the next check looks at it again",
        None,
    ]
    (incoming / "c.jsonl").unlink()
    done = arrivals.read([found[0], found[2]], settings(), incoming.parent / "read")
    assert [file["file"] for file in done.files] == ["a.jsonl"]
    assert "cannot be read (No such file" in why_not(done.left_out)


def test_hidden_files_wait_and_links_that_lead_out_are_refused(incoming: Path) -> None:
    (incoming / ".week.jsonl.partial").write_bytes(b"{}")
    (incoming.parent / "secret.jsonl").write_bytes(b"{}\n")
    (incoming / "week.jsonl").symlink_to(incoming.parent / "secret.jsonl")
    (incoming / "notes.txt").write_text("no data")
    found = {one.name: one.why_not for one in find(incoming)}
    assert found.keys() == {"week.jsonl", "notes.txt"}
    assert "is a link that leads out of" in str(found["week.jsonl"])
    assert "is of no known container; rename it to end in .jsonl" in str(found["notes.txt"])


def test_a_url_is_brought_and_checked(incoming: Path) -> None:
    content = examples.content("none", 5, 1)
    place = incoming.parent / "elsewhere.jsonl"
    place.write_bytes(content)
    url = f"file://{place}#sha256="
    (one,) = find(incoming, asked=settings(url + hashlib.sha256(content).hexdigest()))
    assert (one.name, one.why_not, one.bytes) == (f"file://{place}", None, len(content))
    assert "but params.yaml pins" in why_not(find(incoming, asked=settings(url + "0" * 64)))


def test_nothing_there_is_no_fault(tmp_path: Path) -> None:
    assert find(tmp_path / "absent") == []


def test_many_files_are_one_sample(incoming: Path) -> None:
    for seed in (1, 2):
        (incoming / f"{seed}.jsonl").write_bytes(examples.content("none", 150, seed))
    side = read(incoming, settings(sample_rows=100)).read[LIKE].side()
    assert side.rows == 300
    assert len(side.records) == 100
    assert {row["source"] for row in side.records} == {"1.jsonl", "2.jsonl"}


def test_the_id_of_data_is_that_of_its_files() -> None:
    lines = "\n".join(["a", "b"])
    assert arrivals.digest(["b", "a", "b"]) == hashlib.sha256(lines.encode()).hexdigest()
