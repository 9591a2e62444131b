"""Members of an archive are read from the stream, and none of them goes missing."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from tasks.dataset import archives
from tasks.dataset.archives import Refused
from tasks.dataset.places import form
from tasks.lineage.stage import StageError

GOOD = b'{"text": "a"}\n'


def read(folder: Path, name: str, content: bytes) -> list[tuple[str, bytes] | Refused]:
    """Name and bytes of each member that is read, and those that are refused, in order."""
    path = folder / name
    path.unlink(missing_ok=True)  # a file that is written over is flushed first
    path.write_bytes(content)
    return [
        part if isinstance(part, Refused) else (part.name, part.stream.read())
        for part in archives.members(path, name, form(name, None), None)
    ]


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return target.getvalue()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def tarred(*members: tuple[str, bytes], links: dict[str, bytes] | None = None) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in members:
            archive.addfile(member(name, len(content)), io.BytesIO(content))
        for name, kind in (links or {}).items():
            info = member(name, 0, kind)
            info.linkname = "a.jsonl"
            archive.addfile(info)
    return target.getvalue()


PACKERS: dict[str, Callable[..., bytes]] = {
    "x.zip": zipped,
    "x.tar": tarred,
    "x.tar.gz": lambda *members: gzip.compress(tarred(*members)),
    "x.tar.zst": lambda *members: zstandard.compress(tarred(*members)),
}


@pytest.fixture(params=PACKERS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_rows_are_read_and_the_rest_is_passed_over(tmp_path: Path, name: str) -> None:
    content = PACKERS[name](
        ("a.jsonl", GOOD),
        ("README", b"text"),
        ("./in/b.csv.gz", gzip.compress(b"text\na\n")),
        ("__MACOSX/._a.jsonl", b"\0\5"),
        ("in.zip", b"no archive in an archive"),
    )
    assert read(tmp_path, name, content) == [
        (f"{name}!a.jsonl", GOOD),
        (f"{name}!in/b.csv.gz", b"text\na\n"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("bad", ["../b.jsonl", "/b.jsonl", "in/../../b.jsonl", "C:/b.jsonl"])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, name: str, bad: str) -> None:
    found = read(tmp_path, name, PACKERS[name](("a.jsonl", GOOD), (bad, GOOD), ("c.jsonl", GOOD)))
    assert found == [
        (f"{name}!a.jsonl", GOOD),
        Refused(2, bad, "outside", "the member's name leads out of the archive"),
        (f"{name}!c.jsonl", GOOD),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_comes_once(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, PACKERS[name](("a.jsonl", GOOD), ("./a.jsonl", b"{}")))
    assert found == [
        (f"{name}!a.jsonl", GOOD),
        Refused(2, "a.jsonl", "repeated_member", "a member above has the same name"),
    ]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    found = read(tmp_path, "x.tar", tarred(("a.jsonl", GOOD), links={"b.jsonl": kind}))
    assert found[1] == Refused(2, "b.jsonl", "outside", "the member is a link")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        info = zipfile.ZipInfo("b.jsonl")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    found = read(tmp_path, "x.zip", target.getvalue())
    assert found == [Refused(1, "b.jsonl", "outside", "the member is a link")]


def whole_cuts(name: str, content: bytes) -> list[int]:
    """Where an archive may end so that nothing is lost: a tar's end is blocks of zeros."""
    return list(range(3 * 512 * 2 + 512, len(content))) if name == "x.tar" else []


def test_wherever_an_archive_is_cut_it_is_damaged(tmp_path: Path, name: str) -> None:
    members = [(f"{number}.jsonl", GOOD) for number in range(3)]
    content = PACKERS[name](*members)
    whole = whole_cuts(name, content)
    step = 512 if name == "x.tar" else max(1, len(content) // 60)
    for end in range(0, len(content), step):
        if end in whole:
            assert len(read(tmp_path, name, content[:end])) == 3
            continue
        with pytest.raises(StageError, match=f"{name}.*damaged|{name}!.*damaged"):
            read(tmp_path, name, content[:end])


def test_a_tar_that_is_cut_between_members_says_so(tmp_path: Path) -> None:
    content = tarred(("a.jsonl", GOOD), ("b.jsonl", GOOD))
    with pytest.raises(StageError) as caught:
        read(tmp_path, "x.tar", content[: 2 * 512])
    assert str(caught.value) == (
        "x.tar: a damaged archive (it ends without the block that ends one); make it again"
    )


def test_a_broken_header_does_not_end_a_tar(tmp_path: Path) -> None:
    content = bytearray(tarred(("a.jsonl", GOOD), ("b.jsonl", GOOD)))
    content[2 * 512] ^= 1
    with pytest.raises(StageError, match=r"x.tar: a damaged archive \(bad checksum\); make it"):
        read(tmp_path, "x.tar", bytes(content))


def test_what_stands_behind_the_end_of_a_tar_is_not_lost(tmp_path: Path) -> None:
    content = tarred(("a.jsonl", GOOD))
    with pytest.raises(StageError, match=r"\(there is more behind the block that ends it\); make"):
        read(tmp_path, "x.tar", content + tarred(("b.jsonl", GOOD)))


def test_a_tar_header_is_bounded(tmp_path: Path) -> None:
    block = member("pax", archives.HEADER_BYTES + 1, tarfile.XHDTYPE).tobuf()
    with pytest.raises(StageError, match=r"\(a header of 1048577 bytes\)"):
        read(tmp_path, "x.tar", block + bytes(512))


def test_the_checksum_at_the_end_of_a_compressed_tar_is_read(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(tarred(("a.jsonl", GOOD))))
    content[-5] ^= 1
    with pytest.raises(StageError, match=r"x.tar.gz: damaged behind byte \d+ .*CRC check failed"):
        read(tmp_path, "x.tar.gz", bytes(content))


def test_a_flipped_byte_of_a_member_is_damage(tmp_path: Path) -> None:
    content = bytearray(zipped(("a.jsonl", GOOD), method=zipfile.ZIP_STORED))
    content[content.index(GOOD)] ^= 1
    with pytest.raises(StageError, match=r"x.zip!a.jsonl: damaged behind byte 0 .*Bad CRC-32"):
        read(tmp_path, "x.zip", bytes(content))


def test_an_encrypted_member_says_so(tmp_path: Path) -> None:
    content = bytearray(zipped(("a.jsonl", GOOD)))
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + flags] |= 1
    with pytest.raises(StageError) as caught:
        read(tmp_path, "x.zip", bytes(content))
    assert str(caught.value) == "x.zip: a member is encrypted; make it again without a password"
