from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.lineage import process


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    with process.only_writer("sft", tmp_path):
        message = f"stage sft is already being run by process {os.getpid()}; wait for it, or stop"
        with (
            pytest.raises(process.Busy, match=message),
            process.only_writer("sft", tmp_path, wait_seconds=0.1),
        ):
            pass


def test_stages_do_not_block_each_other(tmp_path: Path) -> None:
    with process.only_writer("sft", tmp_path), process.only_writer("dpo", tmp_path, 0.1):
        pass


def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    hold = (
        "import time; from pathlib import Path; from tasks.lineage import process\n"
        f"with process.only_writer('sft', Path({str(tmp_path)!r})):\n"
        "    print(flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(process.Busy), process.only_writer("sft", tmp_path, wait_seconds=0.1):
        pass
    holder.kill()
    with process.only_writer("sft", tmp_path, wait_seconds=5):
        pass
    holder.communicate()


def test_sigterm_runs_finally_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        process.raise_on_sigterm()
        with pytest.raises(process.Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_is_known_by_its_number_and_its_beginning() -> None:
    here = process.name()
    number, _, began = here.partition("@")
    assert process.is_running(here)
    assert not process.is_running(f"{number}@{int(began) + 1}")  # its number was given anew
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not process.is_running(f"{ended.pid}@{began}")


def test_a_lock_that_is_free_names_nobody(tmp_path: Path) -> None:
    with process.only_writer("demo", tmp_path):
        assert (tmp_path / "demo.pid").read_text() == str(os.getpid())
    assert not (tmp_path / "demo.pid").exists()


@pytest.mark.parametrize(("within", "heeds"), [(None, True), (2.0, False)])
def test_it_ends_with_its_parent(within: float | None, heeds: bool, tmp_path: Path) -> None:
    """By SIGTERM; one that does not heed it, by SIGKILL once its time is up."""
    child = (
        "import pathlib, signal, threading, time; from tasks.lineage import process\n"
        f"told = pathlib.Path({str(tmp_path / 'told')!r})\n"
        "def handler(*_):\n"
        "    told.touch()\n"
        f"    {'raise SystemExit' if heeds else 'pass'}\n"
        "signal.signal(signal.SIGTERM, handler)\n"
        f"process.die_with_parent({within})\n"
        "print(flush=True)\n"
        "while True: time.sleep(0.1)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}]);"
            "print(child.pid, flush=True); child.wait()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    number = int(parent.stdout.readline())
    parent.stdout.readline()  # the child watches
    running = psutil.Process(number)
    parent.kill()
    parent.wait()
    psutil.wait_procs([running], timeout=30)
    assert not running.is_running()
    assert (tmp_path / "told").exists()
    parent.stdout.close()
