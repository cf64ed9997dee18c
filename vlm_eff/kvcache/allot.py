"""Who gets which precision: all alike, by attention, by who took part in it, or as a knapsack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.adaptive import mass_count
from vlm_eff.importance.keep import check_choice, check_ratio, is_number
from vlm_eff.importance.precision import allocate_bits, check_levels, threshold_bits
from vlm_eff.importance.select import top_k
from vlm_eff.models.kv.view import Entries


@part
@dataclass(frozen=True)
class ByMass:
    """The entries that hold most of the attention get the first tier, the others the second (ZipVL).

    rows: which rows look; keep_mass: fraction (0, 1] of the attention on the entries that the chosen ones hold
    How many: the fewest such that as many of the heaviest entries of each head hold it, over all heads of a row
    together. Which: the best of each head by what they get a look.
    """

    rows: CacheRows
    keep_mass: float

    def __post_init__(self) -> None:
        check_ratio("keep_mass", self.keep_mass)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return () if self.keep_mass == 1 else (self.rows,)

    def __call__(self, entries: Entries, ready: Tensor) -> Tensor:
        if self.keep_mass == 1:
            return torch.zeros_like(ready, dtype=torch.long)
        mass, looks = entries.received(self.rows), entries.looking(self.rows)
        ranked = mass.masked_fill(~ready, 0.0).sort(-1, descending=True).values.sum(1)
        longest = ready.sum(-1).amax(1)
        there = torch.arange(ready.shape[-1], device=ready.device) < longest[:, None]
        count = mass_count(ranked, self.keep_mass, there)
        heads = ready.shape[1]
        share = (mass / looks.clamp(min=1)).flatten(0, 1)
        high = top_k(share, count.repeat_interleave(heads), ready.flatten(0, 1)).view_as(ready)
        return (~high).long()


@part
@dataclass(frozen=True)
class Attended:
    """The entries that took part in their layer's attention in the prefill get the first tier, the others the second.

    Another plugin let some of them bypass it; where none did, all get the first. Nothing is observed for it.
    """

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def __call__(self, entries: Entries, ready: Tensor) -> Tensor:
        return (~entries.attended).long()


@part
@dataclass(frozen=True)
class BySaliency:
    """Bits by what entries get a look: above a threshold, or as a knapsack under a budget of bits.

    rows:   which rows look
    levels: ascending widths, in the order of the tiers
    rule:   "mean" solves the knapsack for at most `value` bits an entry on average over each row; "tau" gives the
            highest level to what scores above `value` times the row's mean and the lowest to the others, "share" to
            the fraction `value` that scores best
    per_head: False chooses one set for all heads of a layer, by the mean score; where heads store different entries
            each chooses for itself in any case
    """

    rows: CacheRows
    levels: tuple[int, ...]
    rule: Literal["mean", "tau", "share"]
    value: float
    per_head: bool = False

    def __post_init__(self) -> None:
        check_levels(self.levels)
        check_choice("per_head", self.per_head, (True, False))
        if self.rule not in ("mean", "tau", "share") or not is_number(self.value) or self.value < 0:
            got = f"{self.rule!r} with {self.value!r}"
            raise ConfigError(explain(got, "'mean', 'tau' or 'share' with a number of at least 0", "Correct it"))
        if self.rule == "mean" and self.value < self.levels[0]:
            got = f"a budget of {self.value} bits with levels {self.levels}"
            raise ConfigError(explain(got, f"at least {self.levels[0]}", "Raise the budget or add level 0"))
        if self.rule == "share" and self.value > 1:
            raise ConfigError(explain(f"high_share={self.value!r}", "a fraction in [0, 1]", "Give the share"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def __call__(self, entries: Entries, ready: Tensor) -> Tensor:
        mass, looks = entries.received(self.rows), entries.looking(self.rows)
        scores, heads = (mass / looks.clamp(min=1)).masked_fill(~ready, 0.0), ready.shape[1]
        alike = not self.per_head and bool((entries.position == entries.position[:, :1]).all())
        if alike:
            scores, ready = scores.mean(1, keepdim=True), ready[:, :1]
        bits = self._bits(scores, ready)
        levels = torch.tensor(self.levels, device=bits.device)
        tier = torch.searchsorted(levels, bits).clamp(max=len(self.levels) - 1)
        return tier.expand(-1, heads, -1)

    def _bits(self, scores: Tensor, ready: Tensor) -> Tensor:
        if self.rule == "mean":
            budget = (ready.sum((1, 2)).double() * self.value + 1e-9).floor().long()
            return allocate_bits(scores, ready, self.levels, budget)
        low, high = self.levels[0], self.levels[-1]
        if self.rule == "share":
            return threshold_bits(scores, ready, high=high, low=low, high_share=self.value)
        mean = scores.sum(-1, keepdim=True) / ready.sum(-1, keepdim=True).clamp(min=1)
        return threshold_bits(scores / mean.clamp(min=1e-30), ready, high=high, low=low, tau=self.value)
