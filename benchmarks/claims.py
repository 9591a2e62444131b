"""A line a claim, as every benchmark ends."""

from __future__ import annotations


def claim(name: str, measured: float, target: float, at_most: bool = False) -> bool:
    """Print whether `measured` is at least `target`, or at most, and return it."""
    holds = measured <= target if at_most else measured >= target
    verdict = "ok" if holds else "short"
    print(f"claim: {name} measured {measured:.4g} target {target:g} {verdict}", flush=True)
    return holds
