"""How many entries stay: a budget of the whole cache, and how layers and heads share it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.allocate import apportion
from vlm_eff.importance.keep import check_one, check_ratio
from vlm_eff.models.kv.view import CacheView

_SLACK = 1e-9


@part
@dataclass(frozen=True)
class CacheBudget:
    """How much of the cache stays. Give exactly one.

    ratio: fraction (0, 1] of the tokens seen, padding left out, rounded up; count: entries a layer and key head;
    bytes: of keys and values of one row over all layers that can be compressed, rounded down to whole entries
    """

    ratio: float | None = None
    count: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        named = {"keep_ratio": self.ratio, "keep_count": self.count, "keep_bytes": self.bytes}
        check_one(named, "Give keep_ratio in (0, 1], keep_count, or keep_bytes")
        check_ratio("keep_ratio", self.ratio)
        for name in ("keep_count", "keep_bytes"):
            value = named[name]
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(explain(f"{name}={value!r}", "a whole number of at least 1", "Give how much to keep"))

    @property
    def everything(self) -> bool:
        """True when nothing can be evicted."""
        return self.ratio == 1

    def total(self, seen: int, layers: int, entry_bytes: int) -> int:
        """Entries of one row and one key head over all `layers`, for `seen` tokens.

        entry_bytes: of one token's keys and values in one layer, over all its heads
        """
        if self.count is not None:
            return min(self.count, seen) * layers
        if self.bytes is not None:
            return min(self.bytes // entry_bytes, seen * layers)
        return min(math.ceil((self.ratio or 0.0) * seen - _SLACK), seen) * layers


class Spread(Protocol):
    """How layers share the budget."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        """What has to be observed for it."""
        ...

    def weights(self, view: CacheView, scores: Callable[[int], Tensor], totals: Tensor) -> Tensor | None:
        """Real weights of the layers [B, L], of any scale; None where all get the same.

        scores: layer -> [B, Hkv, N], computed when asked for; totals: [B] entries of a key head over all layers, on the
        host
        """
        ...


@part
@dataclass(frozen=True)
class Evenly:
    """Every layer gets the same."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def weights(self, view: CacheView, scores: Callable[[int], Tensor], totals: Tensor) -> Tensor | None:
        return None


def layer_counts(
    budget: CacheBudget, spread: Spread, view: CacheView, scores: Callable[[int], Tensor], least: int = 0
) -> Tensor:
    """Entries of each layer and key head [B, L], packed ones included; every row meets its total exactly.

    least: entries that no layer may be without, as far as the total reaches
    """
    first = view.entries(view.layers[0])
    per_entry = first.entry_bytes
    layers, seen = len(view.layers), first.seen.cpu()
    # a default device must not move what is counted on the host
    totals = torch.tensor([budget.total(count, layers, per_entry) for count in seen.tolist()], device="cpu")
    weights = spread.weights(view, scores, totals)
    if weights is None:
        # asked at every step of some methods: what `apportion` makes of equal weights, without its exact fractions
        place = torch.arange(layers, device="cpu")
        return (totals[:, None] // layers + (place < totals[:, None] % layers)).to(first.position.device)
    low = torch.minimum(seen.clamp(max=least), totals // layers)
    return apportion(weights.cpu(), totals, low[:, None], seen[:, None]).to(first.position.device)
