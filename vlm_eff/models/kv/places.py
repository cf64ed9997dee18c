"""Rotary tables of cache entries, made again from where they stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.models.adapter import Adapter
from vlm_eff.models.observe import rotate, unrotate


@dataclass(frozen=True)
class Rotary:
    """Makes the tables of one layer's entries.

    places: [A, B, S] int32 rotary positions of every column on each axis (A is 1, or as many as the model has)
    """

    adapter: Adapter
    layer: int
    places: Tensor

    def forth(self, keys: Tensor, position: Tensor) -> Tensor:
        """Rotate keys [B, Hkv, P, Dh] to `position` [B, Hkv, P]."""
        return self._turn(keys, position, rotate)

    def back(self, keys: Tensor, position: Tensor) -> Tensor:
        """Take the rotation of keys [B, Hkv, P, Dh] at `position` [B, Hkv, P] out."""
        return self._turn(keys, position, unrotate)

    def _turn(self, keys: Tensor, position: Tensor, turn: Callable[..., Tensor]) -> Tensor:
        # every head has places of its own: heads become rows
        batch, heads, count, width = keys.shape
        cos, sin = (table.flatten(0, 1) for table in self.tables(position, keys))
        made = turn(self.adapter.layers[self.layer].self_attn, keys.reshape(batch * heads, 1, count, width), cos, sin)
        return made.reshape(keys.shape)

    def tables(self, position: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, Hkv, P, Dr] of entries at logical `position` [B, Hkv, P]; `like` says device and dtype.

        Fillers get the tables of position 0.
        """
        batch, heads, count = position.shape
        at = position.clamp(min=0).long().reshape(1, batch, heads * count).expand(len(self.places), -1, -1)
        ids = self.places.to(position.device).gather(2, at).long()
        probe = torch.empty(1, dtype=like.dtype, device=like.device)
        made = self.adapter.rotary(self.layer, probe, ids[0] if len(ids) == 1 else ids)
        cos, sin = (table.reshape(batch, heads, count, table.shape[-1]) for table in made)
        return cos, sin
