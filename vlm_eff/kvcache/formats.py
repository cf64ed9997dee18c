"""The engine of mixed precision: who gets which form x how a form stores text and visual entries x schedule.

It composes with the engine of eviction: whatever the order in which plugins are attached, those that evict are asked
first, and what they leave is packed. Packed entries are closed: they are never packed again and never evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlm_eff.core.cache import EVICTED, EXACT, CacheSite, Compress, Stored
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.importance.keep import check_several, check_whole
from vlm_eff.kernels.format import Format
from vlm_eff.kvcache.policy import check_cache
from vlm_eff.models.kv.quantised import InBits
from vlm_eff.models.kv.view import CacheView, Entries

Kind = InBits | Literal["exact", "evict"]
Axes = Sequence[str]

# ranges of one bit are shrunk about their middle, keys and values (CalibQuant, arXiv 2502.14882)
SHRUNK = (0.5, 0.3)
EXACT_BITS = 16


@part
@dataclass(frozen=True)
class Tier:
    """How entries of one precision are stored, by what they are: in bits, "exact" as they are, or "evict"."""

    text: Kind
    visual: Kind

    def __post_init__(self) -> None:
        for kind in (self.text, self.visual):
            if not isinstance(kind, InBits) and kind not in ("exact", "evict"):
                raise ConfigError(explain(f"{kind!r}", "InBits, 'exact' or 'evict'", "Say how entries are stored"))


class Allotment(Protocol):
    """Who gets which tier."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        """What has to be observed for it."""
        ...

    def __call__(self, entries: Entries, ready: Tensor) -> Tensor:
        """Number of the tier of each entry [B, Hkv, N] int64; ready: [B, Hkv, N] those that are stored now."""
        ...


@part
@dataclass(frozen=True)
class Everyone:
    """All entries get the first tier."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def __call__(self, entries: Entries, ready: Tensor) -> Tensor:
        return torch.zeros_like(ready, dtype=torch.long)


@part
@dataclass(frozen=True)
class CacheFormats(Plugin):
    """Stores entries of the KV cache in few bits, each of them once.

    tiers:  the forms there are             allot: who gets which of them at the end of a prompt
    later:  who does while decoding, as at a prompt where None
    block:  text is packed in multiples of so many entries of a row and head, the oldest first; what is left over
            stays exact and open. Visual entries are there all at once: where their form is their own they are packed
            all at once, elsewhere they are counted with the text
    every:  packs while decoding each time that so many entries are open; None only after prompts and turns
    recent: the last tokens of a sequence stay exact in any case
    """

    method: str
    tiers: tuple[Tier, ...]
    allot: Allotment = field(default_factory=Everyone)
    later: Allotment | None = None
    block: int = 1
    every: int | None = None
    recent: int = 0

    def __post_init__(self) -> None:
        check_whole("block", self.block)
        check_whole("recent", self.recent, 0)
        if self.every is not None:
            check_whole("every", self.every)

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"),) if self.every is None else (CacheSite("prompt"), CacheSite("step"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        parts = (self.allot,) if self.every is None or self.later is None else (self.allot, self.later)
        return tuple(dict.fromkeys(need for one in parts for need in one.needs))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every way in which entries are stored."""
        return tuple(kind for tier in self.tiers for kind in (tier.text, tier.visual))

    @property
    def writes(self) -> frozenset[Resource]:
        made = {Resource.CACHE_FORM} if any(isinstance(kind, InBits) for kind in self.kinds) else set()
        return frozenset(made | ({Resource.CACHE_ENTRIES} if "evict" in self.kinds else set()))

    def bind(self, context: BindContext) -> CacheFormats:
        check_cache(self.name, context)
        return self

    def at(self, site: CacheSite, view: CacheView) -> Compress | None:
        if all(kind == "exact" for kind in self.kinds):
            return None
        if site.when == "prompt":
            return Compress(view.layers, lambda layer: self.decide(view.entries(layer), self.allot, self.block))
        assert self.every is not None
        # known without asking the device: a row that stores less than the longest one may have to wait
        due = tuple(layer for layer in view.layers if view.open(layer) >= self.every + self.recent)
        allot, size = self.later or self.allot, max(self.every, self.block)
        return Compress(due, lambda layer: self.decide(view.entries(layer), allot, size)) if due else None

    def decide(self, entries: Entries, allot: Allotment, size: int) -> Stored:
        """What becomes of one layer, whose text is packed in multiples of `size`."""
        ready = self._ready(entries, size)
        tier = allot(entries, ready)
        forms = tuple(dict.fromkeys(kind for kind in self.kinds if isinstance(kind, InBits)))
        numbers = {"exact": EXACT, "evict": EVICTED} | {form: at for at, form in enumerate(forms, start=1)}
        table = torch.tensor(
            [[numbers[one.text], numbers[one.visual]] for one in self.tiers], dtype=torch.int8, device=tier.device
        )
        return Stored(table[tier, (entries.modality > 0).long()].masked_fill(~ready, EXACT), forms)

    def _ready(self, entries: Entries, size: int) -> Tensor:
        """Entries that are stored in their form now [B, Hkv, N]; the others stay exact and open."""
        old = entries.present & (entries.ordinal < (entries.seen - self.recent)[:, None, None])
        if all(tier.text == tier.visual for tier in self.tiers):
            return _oldest(old, size)
        visual = entries.modality > 0
        return _oldest(old & ~visual, size) | (old & visual)


def _oldest(old: Tensor, size: int) -> Tensor:
    """The first of `old` [B, Hkv, N], as many as the largest multiple of `size` in each row and head."""
    rank = old.int().cumsum(-1)
    return old & (rank <= rank[..., -1:] // size * size)


def in_bits(
    bits: int, axis: Axes, group: int | None, outliers: float = 0.0, separable: bool = False, shrunk: bool = False
) -> Kind:
    """Keys and values in `bits`: 0 evicts, 16 leaves them as they are.

    axis: of groups of keys and of values, "channel" or "token" each; group: numbers in a group; outliers: fraction of
    each group that is exact; separable: values of token groups are divided by their channel's size first; shrunk: at
    1 bit, shrink ranges as CalibQuant does

    Raises:
        ConfigError: a width, an axis or a fraction that does not exist.
    """
    accepted = "two of 'channel' and 'token', for keys and for values"
    if len(check_several("axis", axis, accepted)) != 2:
        raise ConfigError(explain(f"axis={axis!r}", accepted, "Name both"))
    if bits in (0, EXACT_BITS) and not isinstance(bits, bool):
        return "exact" if bits else "evict"
    factors = SHRUNK if shrunk and bits == 1 else (1.0, 1.0)
    key, value = (
        Format(bits, name, group, separable and at == 1 and name == "token", factor, outliers)  # type: ignore[arg-type]
        for at, (name, factor) in enumerate(zip(axis, factors, strict=True))
    )
    return InBits(key, value)
