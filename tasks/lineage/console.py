"""What a person sees of a stage: a progress bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

LINE_EVERY_SECONDS = 10.0

log = logging.getLogger("tunetrail")


def setup(stage: str) -> None:
    """Send log lines to stderr, with the stage's name before each."""
    log.setLevel(logging.INFO)
    log.propagate = False
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, show_level=False, show_time=False)
        handler.setFormatter(logging.Formatter(f"{stage:<9}%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"{stage:<9}%(message)s"))
    log.handlers = [handler]


def quiet() -> None:
    """Leave the terminal to the stage's own lines. Call it before a library is imported: they read
    these once, and some of what they say is said while they load."""
    os.environ |= {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers asks it too
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL's calls into transformers
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its optional hub kernels


def counted(counts: Mapping[str, int]) -> str:
    """Counts by name as words: "2 duplicate_id, 1 nul"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


Advance = Callable[[int, str], None]


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show how far something is. Call the value with (units done, text such as "loss 0.31")."""
    if sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        with _lines(what, total) as advance:
            yield advance


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("         {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


@contextlib.contextmanager
def _lines(what: str, total: int) -> Iterator[Advance]:
    last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_SECONDS:
            last = time.monotonic()
            log.info("%s %d/%d %s", what, done, total, note)

    yield advance
