"""Scores of cache entries: [B, Hkv, N] float32, higher stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows, CacheSums
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.entry_scores import last_row, pooled, unread
from vlm_eff.importance.keep import check_choice, check_whole
from vlm_eff.models.kv.view import Entries

Normalise = Literal["none", "visible", "length"]


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

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def __call__(self, entries: Entries) -> Tensor:
        heads = torch.arange(entries.present.shape[1], device=entries.present.device)[None, :, None]
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
    """Attention that some query rows pay, summed over rows and the query heads of a group (SnapKV).

    rows:   which rows look
    kernel: neighbours over which the sum is pooled, odd, 1 for none; pool: by their mean or their maximum
    window: last tokens, which are neither pooled nor count as neighbours
    """

    rows: CacheRows = field(default_factory=lambda: CacheRows("text", 32))
    kernel: int = 1
    pool: Literal["avg", "max"] = "avg"
    window: int = 0

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("avg", "max"))
        if not isinstance(self.kernel, int) or isinstance(self.kernel, bool) or self.kernel < 1 or not self.kernel % 2:
            raise ConfigError(
                explain(f"kernel={self.kernel!r}", "an odd whole number", "Use 5 or 7, or 1 for no pooling")
            )

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def __call__(self, entries: Entries) -> Tensor:
        mass = entries.received(self.rows)
        if self.kernel == 1:
            return mass
        before = entries.present & (entries.ordinal < (entries.seen - self.window)[:, None, None])
        return torch.where(before, pooled(mass, self.kernel, self.pool, before), mass)


@part
@dataclass(frozen=True)
class Accumulated:
    """Attention that all queries paid so far, added up as they passed (H2O).

    normalise: early entries are looked at by more queries. "none" is H2O as published (arXiv:2306.14048): under even
        attention over T entries the first gets T * H_T times what the last gets (H_T the harmonic number). "visible"
        divides by the queries that could look (ZipCache, arXiv:2405.14256): H_T is left. "length" also weighs each
        query by the number of entries that it shares itself out over: no bias is left
    steps: queries of decode steps count too
    """

    normalise: Normalise = "none"
    steps: bool = True

    def __post_init__(self) -> None:
        check_choice("normalise", self.normalise, ("none", "visible", "length"))

    @property
    def _kind(self) -> CacheSums:
        return CacheSums("longest" if self.normalise == "length" else "mass", self.steps)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self._kind,)

    def __call__(self, entries: Entries) -> Tensor:
        sums = entries.sums(self._kind)
        got = sums.got[..., 0]
        return got if self.normalise == "none" else got / sums.looks[..., 0].clamp(min=1)


@part
@dataclass(frozen=True)
class ReadOften:
    """How seldom some query rows gave less than an even share: minus a count, not a mass (Scissorhands).

    rows: which rows count; an even share is one part of all that the head stores
    """

    rows: CacheRows = field(default_factory=lambda: CacheRows("last", 400, steps=True))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def __call__(self, entries: Entries) -> Tensor:
        seen = entries.attention(self.rows)
        stored = entries.present.sum(2) + entries.closed
        return -unread(seen.weight, seen.rows.valid, seen.looks, entries.present.shape[1], stored)


@part
@dataclass(frozen=True)
class LastRow:
    """Attention of the newest query, mean over all heads, the same for every key head (TOVA).

    rows: the newest query
    """

    rows: CacheRows = field(default_factory=lambda: CacheRows("last", 1, steps=True))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def __call__(self, entries: Entries) -> Tensor:
        seen = entries.attention(self.rows)
        return last_row(seen.weight, seen.rows.valid, seen.looks, entries.present.shape[1])


def last_rows(which: str, count: int) -> CacheRows:
    """The last `count` text tokens ("text") or tokens ("last") of a prompt, for a method's arguments."""
    check_choice("rows", which, ("text", "last"))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(explain(f"{count!r} rows that look", "a whole number of at least 1", "Give a number of rows"))
    return CacheRows("text" if which == "text" else "last", count)
