"""Where a source is: names, globs, links and pins, told before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.dataset import places
from tasks.dataset.places import Form, Hub

PIN = "sha256=" + "0" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", Form("jsonl", None, None)),
        ("in/A.CSV.GZ", Form("csv", "gz", None)),
        ("a.parquet.zst", Form("parquet", "zst", None)),
        ("a.zip", Form(None, None, "zip")),
        ("a.tar", Form(None, None, "tar")),
        ("a.tgz", Form(None, "gz", "tar")),
        ("a.tar.zst", Form(None, "zst", "tar")),
        ("a.txt", Form(None, None, None)),
        ("a.gz", Form(None, "gz", None)),
    ],
)
def test_the_name_says_how_a_file_is_read(name: str, expected: Form) -> None:
    assert places.form(name, None) == expected


def test_params_say_it_before_the_name() -> None:
    assert places.form("a.txt.gz", "jsonl") == Form("jsonl", "gz", None)
    assert places.form("a.json", "jsonl") == Form("jsonl", None, None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../a.jsonl", "is '../a.jsonl', which leads out of the raw data; put the file there, or pin"),
        ("/a.jsonl", "file:///a.jsonl#sha256=<64 hex digits, which `sha256sum /a.jsonl` prints>"),
        ("a.txt", "is 'a.txt', whose container is not known; write read_as: {container: jsonl|json|"),
        ("*.txt", "is '*.txt', whose container is not known"),
        (
            "https://h/a.jsonl",
            "is 'https://h/a.jsonl', whose content can change; write https://h/a.jsonl#sha256=<64 "
            "hex digits, which `curl -sL https://h/a.jsonl | sha256sum` prints>",
        ),
        ("s3://b/a.jsonl#sha256=12", "whose content can change; write s3://b/a.jsonl#sha256=<64 hex"),
        (f"s3://b/*.jsonl#{PIN}", "but a hash pins one file; write an entry a file"),
        (f"https://me:pw@h/a.jsonl#{PIN}", "is a URL of h that holds a password; take it out"),
        (
            "hf://datasets/o/n@main/a.jsonl",
            "is 'hf://datasets/o/n@main/a.jsonl', which is pinned to no commit; a branch or tag can "
            "move: write hf://datasets/o/n@<40 hex digits of a commit>/a.jsonl",
        ),
        ("hf://datasets/o/n/a.jsonl", "which is pinned to no commit"),
        (f"hf://datasets/n@{COMMIT}/a.jsonl", "but must be hf://datasets/OWNER/NAME@COMMIT/PATH"),
        (f"hf://o/n@{COMMIT}/a.jsonl", "but must be hf://datasets/OWNER/NAME@COMMIT/PATH"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_told_with_its_remedy(name: str, told: str) -> None:
    fault = places.wrong_name(name, None)
    assert fault is not None
    assert told in fault
    assert "pw" not in fault


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "*",
        "in/**/*.csv.gz",
        f"https://h/a.jsonl?key=1#{PIN}",
        f"hf://datasets/o/n@{COMMIT}/data/*.parquet",
    ],
)
def test_a_right_name_is_not(name: str) -> None:
    assert places.wrong_name(name, None) is None


def test_a_url_is_called_without_what_may_be_a_key() -> None:
    url = f"https://h/in/a.jsonl?key=secret#{PIN}"
    assert (places.label(url), places.path_of(url)) == ("https://h/in/a.jsonl", "a.jsonl")
    assert places.hub(f"hf://datasets/o/n@{COMMIT}/d/*.csv") == Hub("o/n", COMMIT, "d/*.csv")
    assert places.hub("s3://b/a.csv") is None


def test_a_name_comes_once() -> None:
    url = f"https://h/a.jsonl#{PIN}"
    found = list(places.wrong_names([("a.jsonl", None), (url, None), (url, None), (None, None)]))
    assert found == [(2, f"is {url!r}, which an entry above reads already; drop one")]


def test_a_glob_finds_what_is_not_hidden(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".c.jsonl", "in/d.jsonl", "in/[e].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jsonl").mkdir()
    assert places.files(tmp_path, "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert places.files(tmp_path, "**/*.jsonl") == [
        "a.jsonl", "b.jsonl", "in/[e].jsonl", "in/d.jsonl",
    ]  # fmt: skip
    assert places.files(tmp_path, ".c.jsonl") == [".c.jsonl"]
    assert places.files(tmp_path, "in/[e].jsonl") == ["in/[e].jsonl"]
    assert places.files(tmp_path, "none.jsonl") == []


def not_found(raw: Path, *names: str) -> list[tuple[int, str]]:
    return list(places.not_found(raw, [(name, None) for name in names]))


@pytest.mark.parametrize("name", ["out.jsonl", "*.jsonl", "in/out.jsonl"])
def test_a_link_out_of_the_raw_data_is_refused(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "out.jsonl").touch()
    if name.startswith("in"):
        (raw / "in").symlink_to(outside)
    else:
        (raw / "out.jsonl").symlink_to(outside / "out.jsonl")
    ((at, told),) = not_found(raw, name)
    found = "in/out.jsonl" if name.startswith("in") else "out.jsonl"
    assert at == 0
    assert told == (
        f"is {name!r}, but {found} is a link that leads out of {raw}; put the file itself there "
        "(`dvc config cache.type copy` where DVC made the link)"
    )


def test_a_link_that_stays_inside_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    assert not_found(tmp_path, "b.jsonl") == []


def test_a_file_is_read_by_one_entry(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert not_found(tmp_path, "a.jsonl", "*.jsonl") == [
        (1, "is '*.jsonl', but an entry above reads a.jsonl already; drop one")
    ]


def test_what_is_missing_is_told_with_what_is_there(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    assert not_found(raw, "a.jsonl")[0][1].endswith("which is empty or missing; put the file there, "
                                                    "or mend its name")  # fmt: skip
    (tmp_path / "raw.dvc").touch()
    assert not_found(raw, "a.jsonl") == [
        (0, f"is 'a.jsonl', but {raw} is not here; `dvc pull {raw}` brings it")
    ]
    raw.mkdir()
    for number in range(10):
        (raw / f"{number}.csv").touch()
    assert "which holds 0.csv, 1.csv," in not_found(raw, "a.jsonl")[0][1]
    assert "7.csv and 2 more; mend the pattern" in not_found(raw, "*.jsonl")[0][1]
