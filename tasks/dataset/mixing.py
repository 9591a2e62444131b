"""The training mix: general rows against forgetting, and weights of sources."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import numpy as np

from tasks.dataset import columns, splits
from tasks.dataset.columns import CHAT, PREFERENCE, TEXT
from tasks.dataset.splits import NOT_IN_MIX, TRAINING, Plan


def weigh(plan: Plan, weights: Mapping[str, float], seed: int) -> None:
    """Set how often each row of a weighted source is trained on: with weight 2.3 each row twice and
    three in ten, chosen by a hash of their name, a third time. Those with none are left out."""
    rows = plan.rows
    training = plan.on(TRAINING, CHAT, PREFERENCE, TEXT) & ~plan.validation
    rank = splits.rank(rows, seed, "weights")
    for code, source in enumerate(rows.sources):
        weight = _weight(source, weights)
        if weight is None:
            continue
        own = np.flatnonzero(training & (rows.source == code) & (rows.role == columns.TRAIN))
        whole, part = divmod(weight, 1)
        more = own[np.argsort(rank[own], kind="stable")[: round(part * len(own))]]
        plan.copies[own] = int(whole)
        plan.copies[more] += 1
        plan.leave_out(own[plan.copies[own] == 0], None, NOT_IN_MIX)


def _weight(source: str, weights: Mapping[str, float]) -> float | None:
    """Of the entry with the source's name, or else of the first whose pattern it fits."""
    if source in weights:
        return weights[source]
    return next((w for name, w in weights.items() if fnmatch.fnmatchcase(source, name)), None)


def admit_general(plan: Plan, share: float, seed: int) -> tuple[int, int]:
    """Let general chats join until they are a share of the training chats; leave out the others.

    Those that share a group with validation cannot join.

    Returns:
        how many were wanted, and how many joined.
    """
    rows = plan.rows
    chats = plan.on(TRAINING, CHAT)
    general = chats & (rows.role == columns.GENERAL)
    own = int(plan.copies[chats & ~general & ~plan.validation].sum())
    wanted = round(share / (1 - share) * own)
    free = np.flatnonzero(general & ~plan.validation)
    order = np.argsort(splits.rank(rows, seed, "general")[free], kind="stable")
    joined = free[order[:wanted]]
    plan.leave_out(np.setdiff1d(np.flatnonzero(general), joined), None, NOT_IN_MIX)
    return wanted, len(joined)
