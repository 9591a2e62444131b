"""The weights of a model that are trained: all of them, or an adapter's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def trained(model: Any) -> Iterator[tuple[str, Any]]:
    """By name; weights that are tied come once."""
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def put(stored: Mapping[str, Tensor], model: Any) -> None:
    """Give the trained weights these values, in place.

    Raises:
        ValueError: when the names are not the same.
    """
    import torch

    own = dict(trained(model))
    if own.keys() != stored.keys():
        strange = sorted(own.keys() ^ stored.keys())
        raise ValueError(f"weights of another model: {strange[0]} and {len(strange) - 1} more")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])
