"""Which commit the code comes from. Only MLflow is told: outputs know content, not history."""

from __future__ import annotations

import subprocess


def commit() -> str | None:
    """The commit that is checked out; None outside a git repository or before its first commit."""
    return _git("rev-parse", "--verify", "--quiet", "HEAD")


def dirty() -> bool:
    """Whether a tracked file differs from the commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def author() -> str | None:
    """The e-mail address of whoever works here, as git knows it."""
    return _git("config", "user.email")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
