"""Lines by number, and the batches in which they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.dataset import lines
from tasks.dataset.lines import Lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", []), (b"a\n", [b"a\n"]), (b"a\n\nb", [b"a\n", b"\n", b"b"])],
)
def test_lines_of_a_file(content: bytes, expected: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    found = Lines(path)
    assert len(found) == len(expected)
    assert found.read(0, len(found)) == expected
    assert found.size == len(content)
    found.close()


@pytest.mark.parametrize(
    ("rows", "size", "batches"),
    [
        (2, 100, [(0, 2), (2, 4), (4, 5)]),
        (9, 100, [(0, 5)]),
        (9, 8, [(0, 2), (2, 3), (3, 5)]),
        (9, 1, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
    ],
)
def test_batches_are_bounded_in_rows_and_bytes(
    rows: int,
    size: int,
    batches: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "BATCH", rows)
    monkeypatch.setattr(lines, "BATCH_BYTES", size)
    path = tmp_path / "file"
    path.write_bytes(b"aaa\nbbb\na long one\nc\nd\n")
    found = Lines(path)
    assert list(found.batches()) == batches
    found.close()
