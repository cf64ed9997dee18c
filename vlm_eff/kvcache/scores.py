"""Scores of cache entries: [B, Hkv, N] float32, higher stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.config import part
from vlm_eff.core.plugin import Observation
from vlm_eff.models.kv.view import Entries


class EntryScore(Protocol):
    """How much each open entry of a layer is worth."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        """What has to be observed for it."""
        ...

    def __call__(self, entries: Entries) -> Tensor:
        """Scores [B, Hkv, N] float32, finite, higher stays; what is not present may score anything."""
        ...


@part
@dataclass(frozen=True)
class Recency:
    """The newest stay."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def __call__(self, entries: Entries) -> Tensor:
        return entries.position.float()


@part
@dataclass(frozen=True)
class Noise:
    """A draw that depends on the seed, the layer, the head and the place in the sequence alone.

    per_head: each key head draws for itself
    """

    seed: int = 0
    per_head: bool = True

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def __call__(self, entries: Entries) -> Tensor:
        heads = torch.arange(entries.key.shape[1], device=entries.key.device)[None, :, None]
        mixed = entries.ordinal * 1_000_003 + (heads * 7919 if self.per_head else 0)
        mixed = mixed + entries.layer * 104_729 + self.seed * 15_485_863
        for factor in (2_654_435_761, 2_246_822_519):
            # a multiplicative hash over 32 bits, its high bits folded down
            mixed = (mixed * factor) % (1 << 32)
            mixed = mixed ^ (mixed >> 15)
        return mixed.float()


@part
@dataclass(frozen=True)
class WindowMass:
    """Attention that the last query rows pay, summed over rows and the query heads of a group (SnapKV).

    rows: which rows look
    """

    rows: CacheRows = field(default_factory=lambda: CacheRows("text", 32))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def __call__(self, entries: Entries) -> Tensor:
        weight = entries.attention(self.rows).weight
        batch, heads, _, count = weight.shape
        groups = entries.key.shape[1]
        return weight.sum(2).view(batch, groups, heads // groups, count).sum(2)
