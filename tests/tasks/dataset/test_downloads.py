"""A source at a URL is brought once, checked against its pin, and never half there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest

from tasks.dataset import downloads
from tasks.dataset.downloads import DownloadError, Fetched
from tasks.lineage.stage import FAULT, StageError

CONTENT = b'{"text": "a"}\n' * 1000
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pin(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Web:
    """A server on the loopback: `pages` are what it has, `asked` what it was asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut_at: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(web: Web) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                web.asked.append(f"{self.command} {path}")
                content = web.pages.get(path)
                if content is None:
                    self.send_error(404)
                    return
                asked = self.headers.get("Range", "")
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first or 0), min(int(last or len(content)) + 1, len(content))
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(end - start))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[start:end][: web.cut_at])

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def web() -> Iterator[Web]:
    with contextlib.closing(Web()) as server:
        yield server


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_page_is_brought_once(tmp_path: Path, web: Web) -> None:
    web.pages["/a.jsonl"] = CONTENT
    url = f"{web.url}/a.jsonl?key=secret#sha256={pin(CONTENT).upper()}"
    for _ in range(2):
        assert downloads.fetch(url, tmp_path) == [
            Fetched(f"{web.url}/a.jsonl", tmp_path / pin(CONTENT))
        ]
    assert (tmp_path / pin(CONTENT)).read_bytes() == CONTENT
    assert web.asked.count("GET /a.jsonl") == 1
    assert held(tmp_path) == [pin(CONTENT)]


def test_what_is_kept_is_checked_again(tmp_path: Path, web: Web) -> None:
    web.pages["/a.jsonl"] = CONTENT
    (tmp_path / pin(CONTENT)).write_bytes(CONTENT[:-1])
    downloads.fetch(f"{web.url}/a.jsonl#sha256={pin(CONTENT)}", tmp_path)
    assert (tmp_path / pin(CONTENT)).read_bytes() == CONTENT


def test_other_content_than_the_pinned_is_refused(tmp_path: Path, web: Web) -> None:
    web.pages["/a.jsonl"] = CONTENT
    with pytest.raises(StageError) as caught:
        downloads.fetch(f"{web.url}/a.jsonl#sha256={'0' * 64}", tmp_path)
    assert str(caught.value) == (
        f"{web.url}/a.jsonl: its sha256 is {pin(CONTENT)}, but params.yaml pins {'0' * 64}; it has "
        "changed or was cut: look at it, then pin the new one"
    )
    assert held(tmp_path) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, web: Web) -> None:
    web.pages["/a.jsonl"] = CONTENT
    web.cut_at = 500
    url = f"{web.url}/a.jsonl?key=secret#sha256={pin(CONTENT)}"
    with pytest.raises(StageError) as caught:
        downloads.fetch(url, tmp_path)
    assert str(caught.value).startswith(f"{web.url}/a.jsonl: ")
    assert "secret" not in str(caught.value)
    assert held(tmp_path) == []
    web.cut_at = None
    downloads.fetch(url, tmp_path)
    assert held(tmp_path) == [pin(CONTENT)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_stop_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    fsspec.filesystem("memory").pipe("/downloads/a.jsonl", CONTENT)

    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr(downloads, "_copy", stopped)
    with pytest.raises((stop, StageError)):
        downloads.fetch(f"memory://downloads/a.jsonl#sha256={pin(CONTENT)}", tmp_path)
    assert held(tmp_path) == []


def test_a_page_that_is_not_there_is_told(tmp_path: Path, web: Web) -> None:
    with pytest.raises(DownloadError) as caught:
        downloads.fetch(f"{web.url}/no.jsonl?key=secret#sha256={'0' * 64}", tmp_path)
    assert caught.value.exit_code == FAULT
    assert str(caught.value).startswith(f"{web.url}/no.jsonl: cannot be brought (")
    assert str(caught.value).endswith(
        "see that the address is right and can be reached from here, then run again"
    )
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/a.jsonl: cannot be brought \("):
        downloads.fetch(f"http://127.0.0.1:9/a.jsonl#sha256={'0' * 64}", tmp_path)


def test_a_local_file_may_be_pinned(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(CONTENT)
    url = f"file://{tmp_path}/a.jsonl"
    (found,) = downloads.fetch(f"{url}#sha256={pin(CONTENT)}", tmp_path / "kept")
    assert (found.name, found.path.read_bytes()) == (url, CONTENT)


def test_a_missing_client_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)
    for scheme, extra in (("s3", "s3"), ("gs", "gs"), ("abfs", "az")):
        with pytest.raises(DownloadError) as caught:
            downloads.fetch(f"{scheme}://b/a.jsonl?key=secret#sha256={'0' * 64}", tmp_path)
        assert str(caught.value) == (
            f"params.yaml: a source is '{scheme}://b/a.jsonl', and the client for {scheme}:// is "
            f'not installed; `pip install -e ".[{extra}]"`'
        )
    assert downloads.unavailable("nope://b/a.jsonl") == (
        "is 'nope://b/a.jsonl', and nope is no scheme that fsspec knows; "
        "use https, s3, gs, az, hf, file"
    )
    assert downloads.unavailable("https://h/a.jsonl") is None


# --- the Hub --------------------------------------------------------------------------------------

LARGE = b'{"text": "kept in LFS"}\n' * 50_000
DATASET = {
    "README.md": b"# a dataset",
    "data/train-0.jsonl": CONTENT,
    "data/train-1.jsonl": LARGE,
    "data/old/train-2.jsonl": CONTENT,
    "data/test.jsonl": CONTENT,
}
IN_LFS = {"data/train-1.jsonl"}
AT = f"hf://datasets/owner/name@{COMMIT}"


def hub_pages() -> dict[str, bytes]:
    """What the Hub's API answers for a dataset at a commit."""
    api = "/api/datasets/owner/name"
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        for folder in ("data", "data/old")
    ]
    pages = {}
    for path, content in DATASET.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lfs = {"oid": pin(content), "size": len(content), "pointerSize": 130}
        more = {"lfs": lfs, "oid": "1" * 40} if path in IN_LFS else {"oid": blob}
        entries.append({"type": "file", "path": path, "size": len(content), **more})
        pages[f"/datasets/owner/name/resolve/{COMMIT}/{path}"] = content
    for folder in ("", "data", "data/old"):
        inside = [
            entry for entry in entries if folder == "" or str(Path(entry["path"]).parent) == folder
        ]
        pages[f"{api}/tree/{COMMIT}/{folder}".rstrip("/")] = json.dumps(inside).encode()
    about = {"id": "owner/name", "sha": COMMIT, "siblings": [], "private": False, "tags": []}
    return {**pages, f"{api}/revision/{COMMIT}": json.dumps(about).encode()}


FETCH = """
import json, sys
from pathlib import Path
from tasks.dataset import downloads
from tasks.lineage.stage import StageError
try:
    found = downloads.fetch(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps([[at.name, str(at.path)] for at in found]))
except StageError as error:
    print(json.dumps(str(error)))
"""


def from_hub(endpoint: str, url: str, folder: Path, root: Path) -> Any:
    """What `fetch` gives in a process of its own: the client reads its settings when imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, url, str(folder / "kept")],
        capture_output=True, text=True, check=True,
        env={**os.environ, **settings, "PYTHONPATH": str(root)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_files_of_a_dataset_are_brought_at_its_commit(tmp_path: Path, web: Web, root: Path) -> None:
    web.pages = hub_pages()
    url = f"{AT}/data/train-*.jsonl"
    found = from_hub(web.url, url, tmp_path, root)
    assert [name for name, _ in found] == [f"{AT}/data/train-0.jsonl", f"{AT}/data/train-1.jsonl"]
    assert [Path(path).read_bytes() for _, path in found] == [CONTENT, LARGE]
    web.asked.clear()
    assert from_hub(web.url, url, tmp_path, root) == found
    assert web.asked == []


def test_what_is_not_as_committed_is_refused(tmp_path: Path, web: Web, root: Path) -> None:
    web.pages = hub_pages()
    for path in ("data/train-0.jsonl", "data/train-1.jsonl"):
        page = f"/datasets/owner/name/resolve/{COMMIT}/{path}"
        web.pages[page] = web.pages[page].replace(b"t", b"T", 1)
        told = from_hub(web.url, f"{AT}/{path}", tmp_path, root)
        kind = "sha256" if path in IN_LFS else "git hash"
        assert told.startswith(f"{AT}/{path}: its {kind} is ")
        assert told.endswith("what came is not what was committed, try again")
        assert all(name.endswith(".json") for name in held(tmp_path / "kept"))


def test_a_path_that_the_dataset_lacks_is_told(tmp_path: Path, web: Web, root: Path) -> None:
    web.pages = hub_pages()
    told = from_hub(web.url, f"{AT}/*.jsonl", tmp_path, root)
    assert told == (
        f"{AT} has no file '*.jsonl'; it has README.md, data/old/train-2.jsonl, data/test.jsonl, "
        "data/train-0.jsonl, data/train-1.jsonl"
    )
    assert held(tmp_path / "kept") == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*.jsonl", 3),
        ("**/*.jsonl", 4),
        ("data/**/*.jsonl", 4),
        ("data/test.jsonl", 1),
        ("*", 1),
        ("data", 0),
    ],
)
def test_a_star_stays_within_a_folder(pattern: str, expected: int) -> None:
    assert sum(downloads._matches(path, pattern) for path in DATASET) == expected
