"""Archives of sources: each member is read as a file of its own, from the stream.

Nothing is ever unpacked to the disk under a member's name, so a member cannot be written anywhere;
one whose name leads out of the archive, or that is a link, is refused all the same: its name is not
what it seems.
"""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from tasks.dataset import containers
from tasks.dataset.containers import Content
from tasks.dataset.places import Container, Form, form
from tasks.lineage.stage import StageError

HEADER_BYTES = 1 << 20
"""Of a tar header that is read into memory whole: a long name or a list of properties."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A member that is not read; `number` counts the archive's members from 1."""

    number: int
    member: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    link: bool
    file: bool
    handle: Any


def members(
    path: Path, name: str, archive: Form, container: Container | None
) -> Iterator[Content | Refused]:
    """The members of an archive that can be read, in its order; each is good until the next.

    Members of other kinds, such as a README, are passed over.

    Raises:
        StageError: when the archive is damaged.
    """
    seen: set[str] = set()
    with path.open("rb", buffering=containers.BUFFER_BYTES) as file, _damage(name):
        found = _of_zip(file) if archive.archive == "zip" else _of_tar(file, name, archive)
        for number, (member, opened) in enumerate(found, start=1):
            tidy = str(PurePosixPath(member.name))
            shown = tidy.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            inner = form(shown, container)
            if fault := _outside(member):
                yield Refused(number, shown, "outside", fault)
            elif not member.file or inner.archive or inner.container is None or _hidden(shown):
                continue
            elif shown in seen:
                yield Refused(number, shown, "repeated_member", "a member above has the same name")
            else:
                seen.add(shown)
                whole = f"{name}!{shown}"
                with opened() as stream:
                    unpacked = containers.decompressed(
                        containers.checked(stream, whole), whole, inner.compression
                    )
                    yield Content(whole, inner.container, unpacked, file.tell)


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # zipfile and tarfile have no common class for what damage leads to
        if isinstance(error, RuntimeError) and "password" in str(error):
            text = "a member is encrypted; make it again without a password"
        else:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            text = f"a damaged archive ({why}); make it again"
        raise StageError(f"{name}: {text}") from None


def _hidden(name: str) -> bool:
    """As for a glob: a Mac puts a ._name.jsonl beside each name.jsonl."""
    return PurePosixPath(name).name.startswith(".")


def _outside(member: _Member) -> str | None:
    for path in (PurePosixPath(member.name), PureWindowsPath(member.name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            return "the member's name leads out of the archive"
    return "the member is a link" if member.link else None


def _of_zip(file: IO[bytes]) -> Iterator[tuple[_Member, Any]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            link = stat.S_ISLNK(info.external_attr >> 16)
            member = _Member(info.filename, link, not info.is_dir(), info)
            yield member, lambda info=info: archive.open(info)


def _of_tar(file: IO[bytes], name: str, archive: Form) -> Iterator[tuple[_Member, Any]]:
    stream = containers.decompressed(file, name, archive.compression)
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
        for info in tar:
            member = _Member(info.name, info.islnk() or info.issym(), info.isfile(), info)
            yield member, lambda info=info: tar.extractfile(info)
            vars(tar)["members"].clear()  # tarfile keeps them all, to find them by name
        rest: Any = tar.fileobj
        while more := rest.read(containers.BUFFER_BYTES):
            if more.strip(b"\0"):
                raise tarfile.ReadError("there is more behind the block that ends it")


class _Header(tarfile.TarInfo):
    """A member's header, or the block of zeros that ends the archive.

    tarfile takes a file that is cut between two members, and a broken header behind the first one,
    for the end of the archive, and so loses the members behind it.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            cut = len(buf) < tarfile.BLOCKSIZE
            why = "it ends without the block that ends one" if cut else str(error)
            raise tarfile.ReadError(why) from None
        if header.size < 0 or (header.type in _READ_WHOLE and header.size > HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


_READ_WHOLE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
