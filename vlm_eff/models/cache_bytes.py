"""Bytes that a cache really takes, layer by layer, whoever filled it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_eff.models.kv.layer import CompressedLayer


@dataclass(frozen=True)
class CacheBytes:
    """What the layers of a cache take, in bytes.

    physical: storages behind keys, values, scales, lowest values, positions and what was observed, each counted once
    logical:  the part of it at positions that are occupied: a static cache allocates its maximum
    """

    physical: tuple[int, ...]
    logical: tuple[int, ...]


def cache_bytes(cache: Any) -> CacheBytes:
    """Measure a cache as `generate` returns it in `past_key_values`, with a plugin or without."""
    physical, logical, seen = [], [], set()
    for layer in cache.layers:
        storages = {}
        for one in _tensors(layer):
            storage = one.untyped_storage()
            # two layers may share what was observed
            if storage.data_ptr() not in seen:
                storages[storage.data_ptr()] = storage.nbytes()
        seen.update(storages)
        held = sum(storages.values())
        physical.append(held)
        logical.append(min(held, _occupied(layer)) if not isinstance(layer, CompressedLayer) else held)
    return CacheBytes(tuple(physical), tuple(logical))


def _tensors(layer: Any) -> list[Tensor]:
    if isinstance(layer, CompressedLayer):
        found = [*layer.buffers(), *layer.book.buffers()]
    else:
        slots = getattr(layer, "slots", None)
        places = [] if slots is None else [slots.index, slots.valid]
        found = [part for part in (layer.keys, layer.values, *places) if isinstance(part, Tensor)]
    return [one for one in found if one.numel()]


def _occupied(layer: Any) -> int:
    """Bytes of keys and values at occupied positions; entries that are missing in the middle take none."""
    keys, values = layer.keys, layer.values
    if not isinstance(keys, Tensor) or keys.dim() != 4:
        return 0
    stored = min(keys.shape[2], int(layer.get_seq_length()))
    one = sum(part.shape[0] * part.shape[1] * part.shape[3] * part.element_size() for part in (keys, values))
    return int(stored * one)
