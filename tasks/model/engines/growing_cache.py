"""A cache of keys and values that grows in place.

Transformers' own dynamic cache makes a new tensor at every token, of all that came before: with 64 rows
of 400 tokens of Gemma 270M it copies a gigabyte a step.  Here room for the whole answer is taken once,
and a layer is a view of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class _View(DynamicLayer):  # type: ignore[misc]
    """Keys and values of some rows of a buffer, from some column on.

    Shapes are (rows, heads, columns, width), as transformers has them; the buffer's columns are filled
    from the left.  With a window, what lies further back is kept but not handed out, as
    `DynamicSlidingWindowLayer` does.
    """

    def __init__(self, keys: Any, values: Any, filled: int, window: int | None) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.is_sliding = window is not None
        self._filled = filled
        self._window = window

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        first = self._first()
        end = self._filled + key_states.shape[-2]
        self.keys[:, :, self._filled : end] = key_states
        self.values[:, :, self._filled : end] = value_states
        self._filled = end
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def get_seq_length(self) -> int:
        return self._filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = self._first()
        return self._filled - first + query_length, first

    def _first(self) -> int:
        return 0 if self._window is None else max(self._filled - self._window + 1, 0)


class Stem:
    """What one forward pass over a common beginning left in every layer."""

    def __init__(self, cache: Any, length: int) -> None:
        self.length = length
        self.layers = cache.layers

    @property
    def bytes_a_token(self) -> int:
        """What one token takes in all layers, keys and values."""
        return sum(
            2 * layer.keys.shape[1] * layer.keys.shape[3] * layer.keys.element_size()
            for layer in self.layers
        )

    def cache(self, rows: int) -> Any:
        """A cache of transformers' own kind that begins with the stem, alike for each row."""
        layers = []
        for layer in self.layers:
            window = getattr(layer, "sliding_window", None)
            copy = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)
            copy.lazy_initialization(layer.keys, layer.values)
            copy.keys = layer.keys.expand(rows, -1, -1, -1)
            copy.values = layer.values.expand(rows, -1, -1, -1)
            if window is not None:
                copy.cumulative_length = self.length
            layers.append(copy)
        return Cache(layers=layers)


class Buffer:
    """Room for the keys and values of a batch, prompts flush right so that all answers begin in one
    column.  What stands before a short prompt is masked."""

    def __init__(self, stem: Stem, rows: int, columns: int) -> None:
        self._windows = [getattr(layer, "sliding_window", None) for layer in stem.layers]
        self._pairs = []
        for layer in stem.layers:
            _, heads, _, width = layer.keys.shape
            shape = (rows, heads, columns, width)
            # zeros: a masked value of NaN would still make a sum NaN
            self._pairs.append((layer.keys.new_zeros(shape), layer.values.new_zeros(shape)))

    def prompt(self, stem: Stem, first: int, last: int, column: int, end: int) -> Any:
        """A cache over rows `first` to `last`, whose prompts stand in columns `column` to `end`, with
        the stem in place."""
        layers = []
        for (keys, values), layer, window in zip(
            self._pairs, stem.layers, self._windows, strict=True
        ):
            own, its = keys[first:last, :, column:end], values[first:last, :, column:end]
            if stem.length:  # a layer with a window may have kept only the end of it
                kept = layer.keys.shape[2]
                own[:, :, stem.length - kept : stem.length] = layer.keys
                its[:, :, stem.length - kept : stem.length] = layer.values
            layers.append(_View(own, its, stem.length, window))
        return Cache(layers=layers)

    def answers(self, filled: int) -> Any:
        """A cache over all rows, of which `filled` columns hold prompts and answers."""
        return Cache(
            layers=[
                _View(keys, values, filled, window)
                for (keys, values), window in zip(self._pairs, self._windows, strict=True)
            ]
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows go."""
        for number, (keys, values) in enumerate(self._pairs):
            index = torch.tensor(rows, device=keys.device)
            self._pairs[number] = (keys.index_select(0, index), values.index_select(0, index))


def unsupported(model: Any) -> str | None:
    """Why a model's cache cannot be shared and grown here, or None."""
    layers = DynamicCache(config=model.config).layers
    strange = {type(layer).__name__ for layer in layers} - {
        DynamicLayer.__name__,
        DynamicSlidingWindowLayer.__name__,
    }
    if strange:
        return f"it keeps more than keys and values ({', '.join(sorted(strange))})"
    if not layers:
        return "its layers do not say what they keep"
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of another kind ({', '.join(sorted(other))})"
    return None
