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

    def before(self, metric: Tensor, position: Tensor, there: Tensor) -> Tensor:
        """A metric of rotated keys [B, Hkv, Dh, Dh] as one of keys before rotation, mean over the entries `there`.

        position, there: [B, Hkv, P]
        A logit is q . T k where T rotates a key to its place, T x = c * x + s * (J x), J the family's swap of halves
        with signs. So an error e before rotation costs (q . T e)^2 = e' (T' q q' T) e: the metric is the mean of
        T' M T. With the means of c c', c s' and s s' that is a few products of Dh x Dh for all entries together.
        """
        batch, heads, count = position.shape
        width, probe = metric.shape[-1], metric.new_ones(1)
        cos, sin = (table.flatten(0, 1).to(metric) for table in self.tables(position, probe))
        ones = metric.new_ones(batch * heads, 1, count, width)
        one = torch.eye(width, dtype=metric.dtype, device=metric.device)[None, None]
        turned = cos.shape[-1]
        side = metric.new_ones(1, width, turned)
        attention = self.adapter.layers[self.layer].self_attn
        swap = rotate(attention, one, torch.zeros_like(side), side)[0, 0].mT
        # the family's own function says how its tables lie: ask it with one of them at 0
        c = rotate(attention, ones, cos, torch.zeros_like(sin))
        s = rotate(attention, ones, torch.zeros_like(cos), sin) * swap.sum(1)
        s[..., turned:] = 0.0
        c, s = (t.view(batch, heads, count, width).masked_fill(~there[..., None], 0.0) for t in (c, s))
        seen = there.sum(-1).clamp(min=1)[:, :, None, None]
        cc, cs, ss = (a.mT @ b / seen * metric for a, b in ((c, c), (c, s), (s, s)))
        sc = s.mT @ c / seen * metric
        return cc + cs @ swap + swap.mT @ sc + swap.mT @ ss @ swap

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
        cos, sin = (table.to(like.device).reshape(batch, heads, count, table.shape[-1]) for table in made)
        return cos, sin
