"""Which commit the code comes from, and what differs from it.

Only MLflow is told: outputs know content, not history.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WorkTree:
    """Where the code stands."""

    commit: str | None
    """None outside a git repository or before its first commit."""
    branch: str | None
    """None when a commit is checked out directly."""
    remote: str | None
    """Address of origin, without credentials."""
    changed: list[str]
    """Files that differ from the commit, new ones that git does not ignore included."""
    changes: bytes
    """The same as a patch for `git apply`, binary files included; empty without changes."""


class GitFailed(Exception):
    """Git cannot tell. The message is its own."""


class ChangesTooLarge(Exception):
    """The patch would be larger than allowed. The message names the largest files."""


def commit() -> str | None:
    """The commit that is checked out; None outside a git repository or before its first commit."""
    return _git("rev-parse", "--verify", "--quiet", "HEAD")


def dirty() -> bool:
    """Whether a tracked file differs from the commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def changed(written: Sequence[str]) -> list[str]:
    """Files that differ from the commit, new ones that git does not ignore included.

    Args:
        written: files and folders that are no changes.
    """
    paths = ["--", ".", *(f":(exclude){path}" for path in written)]
    told = _git("status", "--porcelain", "--no-renames", *paths)
    return [line.split(maxsplit=1)[1] for line in (told or "").splitlines()]


def author() -> str | None:
    """The e-mail address of whoever works here, as git knows it."""
    return _git("config", "user.email")


def work_tree(written: Sequence[str], limit_bytes: int) -> WorkTree:
    """Commit, branch, origin and uncommitted changes of the current folder.

    Args:
        written: files and folders that the pipeline itself writes; they are no changes.
        limit_bytes: of the patch.

    Raises:
        ChangesTooLarge: when the patch is larger.
        GitFailed: when git cannot make it.
    """
    head = commit()
    changed, changes = _changes(written, limit_bytes) if head else ([], b"")
    address = _git("config", "--get", "remote.origin.url")
    return WorkTree(
        commit=head,
        branch=_git("symbolic-ref", "--short", "--quiet", "HEAD"),
        remote=without_credentials(address) if address else None,
        changed=changed,
        changes=changes,
    )


def without_credentials(address: str) -> str:
    """A remote's address without user, password, and what may be a token in its query."""
    return re.sub(r"^([a-z+]+://)[^/]*@", r"\1", address, flags=re.IGNORECASE).partition("?")[0]


def _changes(written: Sequence[str], limit_bytes: int) -> tuple[list[str], bytes]:
    """Names and patch. A copy of the index learns of new files, so that the real one does not."""
    paths = ["--", ".", *(f":(exclude){path}" for path in written)]
    with tempfile.TemporaryDirectory(prefix="tunetrail-") as folder:
        index = Path(folder) / "index"
        real = _git("rev-parse", "--git-path", "index")
        if real and Path(real).exists():
            shutil.copy2(real, index)  # by its time git tells which entries it must not rely on
        environment = {**_environment(), "GIT_INDEX_FILE": str(index)}
        new = _run(environment, "ls-files", "--others", "--exclude-standard", "-z", *paths)
        by_name = ["--pathspec-from-file=-", "--pathspec-file-nul"]
        add = ["--literal-pathspecs", "add", "--intent-to-add", *by_name]
        _refuse_repositories([name for name in _names(new) if name.endswith("/")])
        if new:
            _run(environment, *add, given=new)
        # a patch must not depend on the user's settings
        diff = ["-c", "core.quotepath=off", "diff", "--no-ext-diff", "--no-textconv", "--no-color"]
        diff += ["--no-renames", "--no-relative", "--ignore-submodules=none"]
        raw = _names(_run(environment, *diff, "--raw", "-z", "HEAD", *paths))
        changed = raw[1::2]  # behind modes, hashes and kind of change
        how = zip(raw[::2], changed, strict=True)
        _refuse_repositories([name for modes, name in how if _LINK in modes])
        _refuse_large(changed, limit_bytes)
        form = ["--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--binary", "--full-index"]
        patch = _run(environment, *diff, *form, "HEAD", *paths)
    if len(patch) > limit_bytes:
        raise ChangesTooLarge(f"{len(patch):,} bytes of changes in {', '.join(changed[:5])}")
    return changed, patch


_LINK = "160000"
"""The mode of what is a repository of its own: a submodule, or one that happens to lie here."""


def _names(told: bytes) -> list[str]:
    return [os.fsdecode(name) for name in told.split(b"\0") if name]


def _refuse_repositories(names: Sequence[str]) -> None:
    """Of a repository in the repository a patch names the commit at best, never what differs there."""
    if names:
        raise GitFailed(
            f"{', '.join(names)}: a repository of its own, whose changes no patch holds; commit "
            "there and then here, or name it in .gitignore"
        )


def _refuse_large(changed: Sequence[str], limit_bytes: int) -> None:
    """Before git writes a patch of gigabytes: of new files the patch holds all (packed at best)."""
    top = Path(_git("rev-parse", "--show-toplevel") or ".")
    sizes = {name: (top / name).stat().st_size for name in changed if (top / name).is_file()}
    # text shrinks by no more than a hundred, and data by less
    if sum(sizes.values()) > 100 * limit_bytes:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise ChangesTooLarge(f"{sum(sizes.values()):,} bytes in {', '.join(largest)}")


def _environment() -> dict[str, str]:
    """Without it `git status` also writes the index, and killed then leaves a lock that stops the
    user's next git command."""
    return {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}


def _run(environment: dict[str, str], *arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(
        ["git", *arguments], env=environment, input=given, capture_output=True, check=False
    )
    if done.returncode:
        raise GitFailed(done.stderr.decode(errors="replace").strip() or f"git {arguments[0]}")
    return done.stdout


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], env=_environment(), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
