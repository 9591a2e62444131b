"""Compressed files are streams: a cut or flipped one is told, and a bomb stays small."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import ipc, parquet

from tasks.dataset import containers
from tasks.dataset.places import form
from tasks.dataset.readers import BadRow, Row, Rules
from tasks.lineage.stage import StageError

ROWS = [{"text": f"row {number}"} for number in range(3)]
TABLE = pa.Table.from_pylist(ROWS)


def jsonl() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def as_parquet() -> bytes:
    target = io.BytesIO()
    parquet.write_table(TABLE, target, compression="none", write_page_checksum=True)
    return target.getvalue()


def as_arrow(new: Callable[..., ipc.RecordBatchStreamWriter] = ipc.new_file) -> bytes:
    target = io.BytesIO()
    with new(target, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return target.getvalue()


MADE: dict[str, Callable[[], bytes]] = {
    "a.jsonl": jsonl,
    "a.json": lambda: json.dumps(ROWS).encode(),
    "a.csv": lambda: b"text\nrow 0\nrow 1\nrow 2\n",
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "stream.arrow": lambda: as_arrow(ipc.new_stream),
}
PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a stream goes below the current folder."""
    monkeypatch.chdir(tmp_path)


def read(name: str, content: bytes) -> list[Row | BadRow]:
    path = Path(name)
    path.unlink(missing_ok=True)  # a file that is written over is flushed first
    path.write_bytes(content)
    with containers.opened(path, name, form(name, None)) as found:
        return list(containers.rows(found, Rules(1000, True, None)))


def damage(name: str, content: bytes) -> str:
    with pytest.raises(StageError) as caught:
        read(name, content)
    return str(caught.value)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", MADE)
def test_every_container_is_read_in_every_compression(name: str, packed: str) -> None:
    content = MADE[name]()
    rows = read(name + packed, PACKERS[packed](content) if packed else content)
    assert [row.values for row in rows if isinstance(row, Row)] == ROWS
    left = {path.name for path in Path(".tunetrail").rglob("*")}
    assert left == set()  # the copy that random access needs has no name and is gone


def test_streams_one_behind_the_other_are_one() -> None:
    for packed, pack in PACKERS.items():
        assert len(read("a.jsonl" + packed, pack(jsonl()) + pack(jsonl()))) == 6


@pytest.mark.parametrize("packed", PACKERS)
def test_wherever_a_compressed_file_is_cut_it_is_damaged(packed: str) -> None:
    content = PACKERS[packed](jsonl() * 20)
    for end in range(1, len(content)):
        told = damage("a.jsonl" + packed, content[:end])
        assert told.startswith(f"a.jsonl{packed}: damaged behind byte ")
        assert told.endswith("make the file again, or unpack it and keep the rows that are whole")


def test_a_flipped_byte_of_a_gz_fails_its_checksum() -> None:
    content = bytearray(gzip.compress(jsonl(), 0))
    content[content.index(b"row 1")] ^= 1
    assert "CRC check failed" in damage("a.jsonl.gz", bytes(content))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_cut_file_of_columns_is_damaged(name: str) -> None:
    content = MADE[name]()
    for end in range(0, len(content), max(1, len(content) // 40)):
        assert damage(name, content[:end]).startswith(f"{name}: damaged behind row 0 (")


def test_a_cut_arrow_stream_is_damaged() -> None:
    content = MADE["stream.arrow"]()
    assert damage("a.arrow", content[: len(content) // 2]).startswith("a.arrow: damaged behind row")


def test_a_flipped_byte_of_a_page_fails_its_checksum() -> None:
    content = bytearray(as_parquet())
    content[content.index(b"row 1")] ^= 1
    assert "damaged behind row 0 (" in damage("a.parquet", bytes(content))


def test_a_copy_for_random_access_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "COPY_BYTES", 300)
    assert damage("a.parquet.gz", gzip.compress(as_parquet())) == (
        "a.parquet.gz: unpacks to more than 300 bytes, but can only be read as a whole; unpack it "
        "yourself and name the file that comes out"
    )
    assert len(read("a.parquet", as_parquet())) == 3


BOMB = """
import resource, sys
from pathlib import Path
from tasks.dataset import containers
from tasks.dataset.places import form
from tasks.dataset.readers import Rules
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
name = sys.argv[1]
with containers.opened(Path(name), name, form(name, None)) as content:
    for row in containers.rows(content, Rules(1_000_000, True, None)):
        print(row.reason, row.detail)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["bomb.jsonl.zst", "bomb.json.gz"])
def test_a_bomb_is_one_reject_in_flat_memory(name: str, root: Path) -> None:
    size = 1 << 30
    with Path(name).open("wb") as file:
        packer = (
            zstandard.ZstdCompressor(1).stream_writer(file, closefd=False)
            if name.endswith("zst")
            else gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1)
        )
        with packer as target:
            target.write(b"[" if ".json." in name else b"")
            for _ in range(size >> 22):
                target.write(bytes(1 << 22))
    assert Path(name).stat().st_size < size // 200
    done = subprocess.run(
        [sys.executable, "-c", BOMB, name],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)},
    )  # fmt: skip
    told, mebibytes = done.stdout.splitlines()[0], int(done.stdout.splitlines()[-1])
    assert told.startswith("line_too_long ")
    assert mebibytes < 80
