"""Checkpoints are whole or not there; one that was damaged is never gone on from."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from failing_disk import Killed, failing

from tasks.lineage import whole
from tasks.lineage.stage import FAULT
from tasks.training import checkpoints
from tasks.training.checkpoints import DiskFull, Store


def write(store: Store, step: int) -> None:
    weights = {"a": torch.full((4, 3), float(step)), "b": torch.arange(5)}
    store.write(step, {"weights": weights}, points=[{"step": step}])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state/sft/key")


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_there_is_none_before_the_first(store: Store) -> None:
    assert store.newest() is None


def test_the_last_two_are_kept(store: Store) -> None:
    for step in (3, 20, 100):
        write(store, step)
    assert names(store) == ["step-000000020", "step-000000100"]
    newest = store.newest()
    assert newest == store.folder / "step-000000100"
    assert {path.name for path in newest.iterdir()} == {
        "key.json",
        "manifest.json",
        "points.json",
        "weights.safetensors",
    }


def flip(folder: Path) -> None:
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of a tensor: safetensors itself loads it without a word
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip, "weights.safetensors is not what was written"),
        (lambda at: (at / "points.json").unlink(), "points.json is missing"),
        (lambda at: (at / "more.json").write_text("1"), "more.json is not what was written"),
        (lambda at: (at / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda at: (at / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
        (lambda at: os.truncate(at / "weights.safetensors", 10), "is not what was written"),
    ],
)
def test_a_damaged_one_is_set_aside_and_the_one_before_it_used(
    store: Store, damage: Callable[[Path], object], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 1)
    write(store, 2)
    damage(store.folder / "step-000000002")
    with caplog.at_level(logging.WARNING):
        assert store.newest() == store.folder / "step-000000001"
    assert why in caplog.text
    assert "is set aside (" in caplog.text and "going on from the one before it" in caplog.text
    assert names(store) == ["damaged-step-000000002", "step-000000001"]
    damage(store.folder / "step-000000001")
    assert store.newest() is None


def empty_but_for_its_manifest(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")


def link(folder: Path) -> None:
    (folder / "more").symlink_to("/")


@pytest.mark.parametrize("damage", [empty_but_for_its_manifest, link])
def test_one_that_cannot_even_be_looked_at_is_set_aside(
    store: Store, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 1)
    write(store, 2)
    damage(store.folder / "step-000000002")
    with caplog.at_level(logging.WARNING):
        assert store.newest() == store.folder / "step-000000001"
    assert "is set aside (it cannot be read: " in caplog.text


def test_one_of_other_params_is_set_aside(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Store(tmp_path / "other")
    write(other, 5)
    write(store, 3)
    (other.folder / "step-000000005").rename(store.folder / "step-000000005")
    with caplog.at_level(logging.WARNING):
        assert store.newest() == store.folder / "step-000000003"
    assert "is set aside (it is of a run with other inputs or params)" in caplog.text


def test_no_room_says_how_much_is_needed_and_keeps_the_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, 7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DiskFull) as caught:
        write(store, 8)
    assert caught.value.exit_code == FAULT
    assert str(caught.value) == (
        f"no room for the checkpoint of step 8: it takes 88 bytes, 10 are free in {store.folder}; "
        "that of step 7 is intact and training goes on from it: free some space and run again"
    )
    assert names(store) == ["step-000000007"]


def test_what_a_kill_left_half_written_is_removed(store: Store) -> None:
    write(store, 7)
    left = whole.partial(store.folder / "step-000000008")
    left.mkdir()
    (left / "weights.safetensors").write_bytes(bytes(100))
    assert store.newest() == store.folder / "step-000000007"
    assert [path.name for path in store.folder.iterdir()] == ["step-000000007"]


def test_the_disk_fills_while_it_is_written(store: Store) -> None:
    write(store, 1)
    at = 0
    while True:
        at += 1
        with failing(at, errno.ENOSPC) as disk:
            try:
                write(store, 2)
            except (DiskFull, OSError):
                assert disk.triggered
        newest = store.newest()
        assert newest is not None
        if not disk.triggered:
            break
        assert newest.name in ("step-000000001", "step-000000002")
        shutil.rmtree(store.folder / "step-000000002", ignore_errors=True)
    assert at > 5
    assert newest.name == "step-000000002"


def test_a_kill_at_any_operation_leaves_one_that_can_be_trusted(store: Store) -> None:
    write(store, 1)
    at = 0
    while True:
        at += 1
        with failing(at, None) as disk:
            try:
                write(store, 2)
            except Killed:
                assert disk.triggered
        newest = store.newest()
        assert newest is not None and newest.name in ("step-000000001", "step-000000002")
        if not disk.triggered:
            break
        shutil.rmtree(store.folder / "step-000000002", ignore_errors=True)
    assert at > 5
    write(store, 3)  # what a kill left is in nobody's way
    assert not [name for name in names(store) if name.endswith(checkpoints.MANIFEST)]
