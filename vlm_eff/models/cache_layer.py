"""Cache layers with a logical length (positions counted) apart from the physical one (entries stored).

A layer of the user's cache becomes one of these the first time tokens are missing from it: its class is replaced by a
subclass of the class it had, so that everything Hugging Face sees stays logical and beams, crop, several turns,
`deepcopy(cache)` and assisted decoding go on working. The state lives in the layer, not in the plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from vlm_eff.core.errors import StateError, explain
from vlm_eff.models.side_store import SideStore
from vlm_eff.models.slots import Slots, crop_refused

if TYPE_CHECKING:
    _Base = Any
else:
    # the base all layers share, or Python refuses to give an existing layer the new class
    _Base = CacheLayerMixin


class LogicalLayer(_Base):
    """Mixin over a Hugging Face cache layer; `slots` says what is stored, `ticket` what the next update brings.

    `store` holds the tokens that were dropped before this layer, for methods that bring them back.
    """

    slots: Slots
    ticket: Callable[[Slots], Slots] | None
    store: SideStore | None = None
    # entries beyond the window that a sliding layer stores, one for each register that is a guest
    extra: int = 0

    def make_room(self, guests: int) -> None:
        """Let a sliding layer store `guests` more entries, so that they push no token out of its window."""
        if self.is_sliding:
            self.extra += guests
            self.sliding_window += guests

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        ticket, self.ticket = self.ticket, None
        if ticket is None:
            raise StateError(
                explain(
                    "a cache that was made under a handle is used by a model without its handle",
                    "a cache used inside the with block it was made in",
                    "Keep the handle attached while the cache is in use, or start a new cache",
                )
            )
        made: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
        slots = ticket(self.slots)
        self.slots = slots.keep_last(self.keys.shape[-2]) if self.is_sliding else slots
        return made

    def get_seq_length(self) -> int:
        return self.slots.logical

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if not self.is_sliding:
            return self.slots.logical + query_length, 0
        window = self.sliding_window - self.extra - 1
        return min(self.slots.logical, window) + query_length, max(self.slots.logical - window, 0)

    def visible(self) -> Slots:
        """The entries the next attention sees, before what it brings itself."""
        return self.slots.keep_last(self.sliding_window - 1) if self.is_sliding else self.slots

    def crop(self, tokens_to_remove: int) -> None:
        cropped = self.slots.crop(-tokens_to_remove)
        super().crop(tokens_to_remove)
        self.slots = cropped.keep_last(self.keys.shape[-2]) if self.is_sliding else cropped

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        rows = torch.arange(self.slots.index.shape[0], device=self.slots.index.device)
        self._take(rows[indices.to(rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        rows = torch.arange(self.slots.index.shape[0], device=self.slots.index.device)
        self._take(rows.repeat_interleave(repeats))

    def _take(self, rows: Tensor) -> None:
        self.slots = self.slots.select(rows)
        self.store = None if self.store is None else self.store.select(rows)

    def reset(self) -> None:
        super().reset()
        self.make_room(-self.extra)
        self.slots = Slots.plain(self.slots.index.shape[0], 0, self.slots.index.device)
        self.store = None


@cache
def _logical_class(base: type) -> type:
    return type("Logical" + base.__name__, (LogicalLayer, base), {})


class GuardedLayer(_Base):
    """Mixin over a layer that misses nothing, in a cache whose later layers do: a crop they must refuse stops here."""

    floor: int

    def crop(self, tokens_to_remove: int) -> None:
        after = self.get_seq_length() - abs(tokens_to_remove)
        if after < self.floor:
            raise crop_refused(abs(tokens_to_remove), self.get_seq_length() - self.floor)
        super().crop(tokens_to_remove)


@cache
def _guarded_class(base: type) -> type:
    return type("Guarded" + base.__name__, (GuardedLayer, base), {})


def guard(layer: Any, floor: int) -> None:
    """Let nobody crop a layer below `floor`, so that a cache is cropped in all its layers or in none."""
    if isinstance(layer, LogicalLayer):
        return
    if not isinstance(layer, GuardedLayer):
        layer.__class__ = _guarded_class(type(layer))
    layer.floor = floor


def is_logical(layer: object) -> bool:
    """True when `layer` keeps a logical length of its own."""
    return isinstance(layer, LogicalLayer)


def make_logical(layer: Any, rows: int, device: torch.device) -> LogicalLayer:
    """Turn a dynamic cache layer, empty or filled, into one with a logical length."""
    if isinstance(layer, LogicalLayer):
        return layer
    length = int(layer.get_seq_length())
    stored = int(layer.keys.shape[-2]) if layer.is_initialized and layer.keys is not None and length else 0
    layer.__class__ = _logical_class(type(layer))
    layer.slots = Slots.plain(rows, length, device).keep_last(stored)
    layer.ticket = None
    return layer  # type: ignore[no-any-return]


def stored_layer(cache: Any, index: int) -> Any:
    """The cache's layer `index`, or None where there is no cache or no such layer yet."""
    return cache.layers[index] if cache is not None and index < len(cache.layers) else None


def ensure_layer(cache: Any, index: int) -> None:
    """Let a cache that makes its layers when they are needed make those up to `index`."""
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
