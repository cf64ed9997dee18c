"""The cache layer that stores less than it has seen: a compressed part, and behind it everything that came since."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.models.cache_layer import LogicalLayer
from vlm_eff.models.call import Call
from vlm_eff.models.kv.book import Book
from vlm_eff.models.kv.segments import Segment
from vlm_eff.models.slots import Slots, crop_refused
from vlm_eff.models.token_map import TokenMap


class Packed:
    """What a layer hands to its attention in place of keys and values, when not all of them are plain tensors.

    segments come first in the order of columns, then the tensors.
    """

    def __init__(self, segments: tuple[Segment, ...], key: Tensor, value: Tensor) -> None:
        self.segments = segments
        self.key = key
        self.value = value

    @property
    def count(self) -> int:
        """Columns of all parts."""
        return sum(segment.count for segment in self.segments) + self.key.shape[-2]

    def dense(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """All keys and values [B, Hkv, S, Dh] as tensors."""
        parts = [segment.read(self.key.dtype, rotary) for segment in self.segments]
        keys, values = (list(part) for part in zip(*parts, (self.key, self.value), strict=True))
        return torch.cat(keys, -2), torch.cat(values, -2)


class CompressedLayer(LogicalLayer):
    """Mixin over a dynamic cache layer.

    segments: packed entries, oldest first
    held:     [B, Hkv, P] int32 positions of the first P entries of `keys`, -1 for fillers, or None before compression
    weight:   [B, Hkv, P] float32 tokens that each of these stands for, or None
    slots:    positions of the entries of `keys` behind them, as in `LogicalLayer`
    ragged:   some entry is a filler; on the host, so that no step asks the device
    floor:    no crop may reach below: the same for all layers, so that all are cropped or none
    book:     what was observed and is not used yet
    """

    segments: tuple[Segment, ...] = ()
    held: Tensor | None = None
    weight: Tensor | None = None
    ragged: bool = False
    floor: int = 0
    book: Book

    @property
    def compressed(self) -> bool:
        """True when entries are held by head, or packed."""
        return self.held is not None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        made = super().update(key_states, value_states, *args, **kwargs)
        if not self.segments:
            return made
        packed = Packed(self.segments, self.keys, self.values)
        return packed, packed

    def positions(self) -> Tensor:
        """Logical position of every stored entry [B, Hkv, S] int32 in the order of columns; -1 for fillers."""
        heads = self.keys.shape[1] if self.keys is not None and self.keys.dim() == 4 else 1
        return _positions(self.segments, self.held, self.slots, heads)

    def snapshot(self) -> Callable[[], Tensor] | None:
        """Makes `positions` of now at any later time; None before compression."""
        if not self.compressed:
            return None
        segments, held, slots = self.segments, self.held, self.slots
        assert held is not None
        return lambda: _positions(segments, held, slots, held.shape[1])

    @property
    def weighted(self) -> bool:
        """True when some entry stands for several tokens."""
        return self.weight is not None or any(segment.weight is not None for segment in self.segments)

    def weights(self) -> Tensor | None:
        """Tokens that each entry of `positions` stands for [B, Hkv, S], or None for one each."""
        if not self.weighted:
            return None
        assert self.held is not None
        ones = [torch.ones_like(segment.position, dtype=torch.float32) for segment in self.segments]
        parts = [one if s.weight is None else s.weight for one, s in zip(ones, self.segments, strict=True)]
        parts.append(self.weight if self.weight is not None else torch.ones_like(self.held, dtype=torch.float32))
        tail = parts[0].new_ones(*self.held.shape[:2], self.slots.stored)
        return torch.cat([*parts, tail], -1)

    def coming(self, call: Call, survivors: TokenMap | None) -> tuple[Tensor, bool]:
        """Positions of what the layer will see in a call [B, Hkv, K], and whether any of them is a filler."""
        known = self.positions()
        if survivors is None:
            place = torch.arange(call.past, call.past + call.length, device=known.device)
            new = place.expand(known.shape[0], -1)
        else:
            new = (call.past + survivors.index).masked_fill(~survivors.valid, -1)
        new = new.int()[:, None].expand(-1, known.shape[1], -1)
        return torch.cat([known, new], 2), self.ragged or (survivors is not None and survivors.ragged)

    @property
    def packed(self) -> int:
        """Entries in front of those that `slots` describes."""
        return self.prefix + sum(segment.count for segment in self.segments)

    def dense_keys(self, rotary: Any) -> Tensor:
        """All keys [B, Hkv, S, Dh], unpacked."""
        return Packed(self.segments, self.keys, self.values).dense(rotary)[0]

    @property
    def prefix(self) -> int:
        """Entries of `keys` that are held by head."""
        return 0 if self.held is None else self.held.shape[2]

    def inside(self, limit: int) -> int:
        """Entries of `keys` at positions below `limit`, fillers included."""
        return self.prefix + self.slots.index.shape[1] + max(min(limit, self.slots.stop) - self.slots.start, 0)

    def open(self, limit: int) -> int:
        """Entries below `limit` that are stored as they were, fillers included."""
        return sum(segment.count for segment in self.segments if segment.exact) + self.inside(limit)

    def buffers(self) -> list[Tensor]:
        """Every tensor that stands for cache entries: contents, positions and weights; not what was observed.

        Rotary positions count, without which keys that are stored before rotation are no keys.
        """
        columns = self.book.columns
        places = None if columns is None else columns.places
        own = [self.keys, self.values, self.held, self.weight, self.slots.index, self.slots.valid, places]
        return [t for t in own if t is not None] + [t for segment in self.segments for t in segment.buffers]

    @property
    def bytes(self) -> int:
        """Bytes of the storages behind `buffers`, each counted once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.buffers() if t.numel()}
        return sum(storages.values())

    def crop(self, tokens_to_remove: int) -> None:
        after = self.get_seq_length() - abs(tokens_to_remove)
        if after < self.floor:
            raise crop_refused(abs(tokens_to_remove), self.get_seq_length() - self.floor)
        super().crop(tokens_to_remove)
        self.book.crop(self.slots.logical, abs(tokens_to_remove))

    def _take(self, rows: Tensor) -> None:
        super()._take(rows)
        self.held = None if self.held is None else self.held.index_select(0, rows.to(self.held.device))
        self.weight = None if self.weight is None else self.weight.index_select(0, rows.to(self.weight.device))
        self.segments = tuple(segment.select(rows) for segment in self.segments)
        self.book = self.book.select(rows)

    def reset(self) -> None:
        super().reset()
        self.segments, self.held, self.weight, self.ragged = (), None, None, False
        self.floor, self.book = 0, Book()

    def offload(self) -> None:
        super().offload()
        self._move("cpu")

    def prefetch(self) -> None:
        super().prefetch()
        if self.is_initialized:
            self._move(self.device)

    def _move(self, device: torch.device | str) -> None:
        self.held = None if self.held is None else self.held.to(device, non_blocking=True)
        self.weight = None if self.weight is None else self.weight.to(device, non_blocking=True)
        self.segments = tuple(segment.to(device) for segment in self.segments)


def _positions(segments: tuple[Segment, ...], held: Tensor | None, slots: Slots, heads: int) -> Tensor:
    index, valid = slots.positions()
    tail = index.masked_fill(~valid, -1).int()[:, None].expand(-1, heads, -1)
    parts = [segment.position for segment in segments] + ([] if held is None else [held])
    return torch.cat([*parts, tail], -1) if parts else tail


@cache
def _compressed_class(base: type) -> type:
    return type("Compressed" + base.__name__, (CompressedLayer, base), {})


def check_layer(layer: Any) -> None:
    """Refuse a layer that cannot become one that is compressed.

    Raises:
        CapabilityError: a layer of another kind, such as one that quantises by itself.
        StateError: a layer that was filled without the handle; it may be shared with other requests.
    """
    if isinstance(layer, CompressedLayer):
        return
    if type(layer) is not DynamicLayer:
        raise CapabilityError(
            explain(
                f"a cache layer of type {type(layer).__name__}",
                "plain dynamic layers",
                'Leave cache_implementation unset, or set it to "dynamic"',
            )
        )
    if layer.get_seq_length():
        raise StateError(
            explain(
                "a cache that was filled without this handle; other requests may share it",
                "an empty cache, or one that was made under the handle",
                "Start a new cache, or prefill the shared prefix with the handle attached and copy it",
            )
        )


def make_compressed(layer: Any, rows: int, device: torch.device) -> CompressedLayer:
    """Turn an empty dynamic layer into one that can be compressed; see `check_layer` for what is refused."""
    if isinstance(layer, CompressedLayer):
        return layer
    check_layer(layer)
    layer.__class__ = _compressed_class(type(layer))
    layer.slots = Slots.plain(rows, 0, device)
    layer.ticket = None
    layer.book = Book()
    return layer  # type: ignore[no-any-return]


def compressed_layers(cache: Any) -> dict[int, CompressedLayer]:
    """The layers of a cache that can be compressed, by decoder layer."""
    if cache is None:
        return {}
    return {index: layer for index, layer in enumerate(cache.layers) if isinstance(layer, CompressedLayer)}
