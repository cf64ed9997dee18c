"""How layers share a budget, by what their attention needs, and how the key heads of a layer do.

Every rule returns real weights, and `layer_counts` turns them into whole numbers that meet the total exactly. A rule
that looks at scores or attention needs those of all layers before the first one is written: the peak is the full cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.allocate import apportion, common_mass, density, hybrid, pyramid, softmax
from vlm_eff.importance.head_budgets import head_counts
from vlm_eff.importance.keep import is_number
from vlm_eff.importance.layer_signals import cross_entropy, sparsity
from vlm_eff.kvcache.budget import Evenly, Spread
from vlm_eff.models.kv.view import CacheView, Entries, RowAttention

Scores = Callable[[int], Tensor]


@part
@dataclass(frozen=True)
class Pyramid:
    """Entries fall linearly from the first layer to the last (PyramidKV).

    window: last tokens that every layer keeps, inside its share
    beta:   how many times less than the mean the last layer has beyond the window
    Looks at no scores, so that a layer need not wait for the others.
    """

    window: int = 8
    beta: float = 20.0

    def __post_init__(self) -> None:
        if not is_number(self.beta) or self.beta < 1:
            raise ConfigError(explain(f"beta={self.beta!r}", "a number of at least 1", "Use 20"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def weights(self, view: CacheView, scores: Scores, totals: Tensor) -> Tensor:
        layers = len(view.layers)
        return pyramid(layers, totals / layers, _seen(view), self.window, self.beta)


@part
@dataclass(frozen=True)
class Sparsity:
    """Layers whose attention is dense get more (VL-Cache).

    rows:      query rows that are looked at
    threshold: attention below this fraction of its row's largest counts as empty
    least:     fraction of the tokens seen that every layer gets, as far as the total reaches
    """

    rows: CacheRows = field(default_factory=lambda: CacheRows("after", 256))
    threshold: float = 0.01
    least: float = 0.01

    def __post_init__(self) -> None:
        for name in ("threshold", "least"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ConfigError(explain(f"{name}={value!r}", "a fraction in [0, 1]", "Use 0.01"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def weights(self, view: CacheView, scores: Scores, totals: Tensor) -> Tensor:
        def sign(entries: Entries, seen: RowAttention) -> Tensor:
            return sparsity(seen.weight, seen.rows.valid, seen.looks, self.threshold).mean(1)

        made, seen = density(_signs(view, self.rows, sign)), _seen(view)
        low = torch.minimum(torch.ceil(self.least * seen - 1e-6).long(), totals // len(view.layers))
        return apportion(made.cpu(), totals, low[:, None], seen[:, None]).double()


@part
@dataclass(frozen=True)
class CrossEntropy:
    """Layers in which text and images attend to one another evenly get more (MEDA).

    rows: query rows that are looked at, of both kinds; temperature: of the softmax over layers
    The entropy is a mean over rows of each kind, so a draw of them does for all.
    """

    rows: CacheRows = field(default_factory=lambda: CacheRows("last", 64, random=64))
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or self.temperature <= 0:
            raise ConfigError(explain(f"temperature={self.temperature!r}", "a number above 0", "Use 1.0"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def weights(self, view: CacheView, scores: Scores, totals: Tensor) -> Tensor:
        def sign(entries: Entries, seen: RowAttention) -> Tensor:
            return cross_entropy(seen.weight, seen.rows.valid, seen.looks, seen.rows.modality, entries.modality)

        return softmax(_signs(view, self.rows, sign), self.temperature)


@part
@dataclass(frozen=True)
class CommonMass:
    """Every layer keeps the same fraction of its own score, mean over key heads (PrefixKV)."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    def weights(self, view: CacheView, scores: Scores, totals: Tensor) -> Tensor:
        masses = [scores(layer).mean(1).clamp(min=0) for layer in view.layers]
        present = [view.entries(layer).present.any(1) for layer in view.layers]
        # after an eviction layers may store different numbers
        width = max(mass.shape[1] for mass in masses)
        place = masses[0].device
        mass = torch.stack([_wide(one, width).to(place) for one in masses], 1)
        there = torch.stack([_wide(one, width).to(place) for one in present], 1)
        return common_mass(mass, totals, there)[0].double()


@part
@dataclass(frozen=True)
class Hybrid:
    """A part of the budget follows a rule, the rest is even.

    spread: the rule; share: fraction that follows it. 0.2 is what EffiVLM-Bench (ACL 2025) found best for
    vision-language models, where adaptive rules alone starve later layers at small budgets
    """

    spread: Spread
    share: float = 0.2

    def __post_init__(self) -> None:
        if not is_number(self.share) or not 0 <= self.share <= 1:
            raise ConfigError(
                explain(f"adaptive_share={self.share!r}", "a fraction in [0, 1]", "Use 0.2, or 1 for all")
            )

    @property
    def needs(self) -> tuple[Observation, ...]:
        return self.spread.needs

    def weights(self, view: CacheView, scores: Scores, totals: Tensor) -> Tensor | None:
        made = self.spread.weights(view, scores, totals)
        return None if made is None else hybrid(made, self.share)


def mixed(spread: Spread, share: float) -> Spread:
    """A rule for `share` of the budget and equal layers for the rest, without work that decides nothing."""
    both = Hybrid(spread, share)
    if share == 1:
        return spread
    return both if share else Evenly()


@part
@dataclass(frozen=True)
class BestOfHeads:
    """Each key head keeps as many entries as it has among the best of its layer (AdaKV).

    floor: fraction [0, 1] of the budget that heads share evenly
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        if not is_number(self.floor) or not 0 <= self.floor <= 1:
            raise ConfigError(
                explain(f"floor={self.floor!r}", "a fraction in [0, 1]", "Give the equal part, such as 0.2")
            )

    def __call__(self, scores: Tensor, entries: Entries, protected: Tensor, count: Tensor) -> Tensor:
        kept = protected.sum(2)
        total = (count * scores.shape[1] - kept.sum(1)).clamp(min=0)
        return kept + head_counts(scores, entries.present & ~protected, 0, self.floor, total)


def _seen(view: CacheView) -> Tensor:
    """Tokens seen [B], on the host."""
    return view.entries(view.layers[0]).seen.cpu()


def _signs(view: CacheView, rows: CacheRows, sign: Callable[[Entries, RowAttention], Tensor]) -> Tensor:
    """One number for each row and layer [B, L]."""
    layers = [view.entries(layer) for layer in view.layers]
    signs = [sign(entries, entries.attention(rows)) for entries in layers]
    return torch.stack([one.to(signs[0].device) for one in signs], 1)


def _wide(mass: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mass, (0, width - mass.shape[1]))
