"""Chromium for the tests marked `browser`. A plugin, for the tests that name it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = [  # the machines of CI have no network to look for updates in, and run as root
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium() -> str | None:
    """The program; TUNETRAIL_BROWSER names another."""
    named = os.environ.get("TUNETRAIL_BROWSER")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium. Without one the test is skipped on a person's machine, and fails in CI.

    For a module: as long as it is open, an event loop runs in this thread, and others cannot.
    """
    program = chromium()
    if program is None:
        why = "no chromium on PATH; `apt-get install chromium`, or name one in TUNETRAIL_BROWSER"
        if os.environ.get("CI"):
            pytest.fail(f"{why}: CI must not skip these tests")
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield launched
        launched.close()
