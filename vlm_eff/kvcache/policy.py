"""The engine of eviction: score x budget x protection x treatment x schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vlm_eff.core.cache import EVICTED, EXACT, CacheSite, Compress, Stored
from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.importance.keep import check_choice, is_number
from vlm_eff.importance.select import top_k
from vlm_eff.kvcache.budget import CacheBudget, Evenly, Spread, layer_counts
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import EntryScore
from vlm_eff.models.kv.view import CacheView, Entries

_SLACK = 1e-6


class Treatment(Protocol):
    """What becomes of the entries that are not chosen."""

    def __call__(self, entries: Entries, chosen: Tensor, protected: Tensor) -> Stored:
        """The layer's new state; chosen, protected: [B, Hkv, N], protected ones are chosen too."""
        ...


@part
@dataclass(frozen=True)
class Evict:
    """They are evicted."""

    def __call__(self, entries: Entries, chosen: Tensor, protected: Tensor) -> Stored:
        return Stored(torch.where(chosen, EXACT, EVICTED).to(torch.int8))


class HeadSpread(Protocol):
    """How the key heads of a layer share its budget."""

    def __call__(self, scores: Tensor, entries: Entries, protected: Tensor, count: Tensor) -> Tensor:
        """Entries that each head keeps [B, Hkv]; count: [B] what a head keeps on average."""
        ...


@part
@dataclass(frozen=True)
class EqualHeads:
    """Every head keeps the same number."""

    def __call__(self, scores: Tensor, entries: Entries, protected: Tensor, count: Tensor) -> Tensor:
        return count[:, None].expand(-1, scores.shape[1])


@part
@dataclass(frozen=True)
class CachePolicy(Plugin):
    """Evicts entries of the KV cache between forward passes.

    score:   what an entry is worth        budget: what stays of the whole cache, packed entries included
    spread:  how layers share it           heads:  how the key heads of a layer do
    protect: what stays in any case, inside the budget; a budget below that is raised to it
    treat:   what becomes of the others    per_head: False chooses one set for all heads of a layer, by the mean score
    when:    "prompt" compresses once after each prompt or turn, "steps" goes on while decoding, in each row as soon as
             a layer of it stores `every` entries more than its budget
    drop:    while decoding, go below the budget by this fraction of it, so that the next time is far
    """

    method: str
    score: EntryScore
    budget: CacheBudget
    spread: Spread = field(default_factory=Evenly)
    heads: HeadSpread = field(default_factory=EqualHeads)
    protect: Protect = field(default_factory=Protect)
    treat: Treatment = field(default_factory=Evict)
    per_head: bool = True
    when: Literal["prompt", "steps"] = "prompt"
    every: int = 1
    drop: float = 0.0

    def __post_init__(self) -> None:
        check_choice("when", self.when, ("prompt", "steps"))
        check_choice("per_head", self.per_head, (True, False))
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ConfigError(
                explain(f"every={self.every!r}", "a whole number of at least 1", "Give a number of steps")
            )
        if not is_number(self.drop) or not 0 <= self.drop < 1:
            raise ConfigError(explain(f"drop={self.drop!r}", "a fraction in [0, 1)", "Give a part of the budget"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"), CacheSite("step")) if self.when == "steps" else (CacheSite("prompt"),)

    @property
    def needs(self) -> tuple[Observation, ...]:
        if self.budget.everything:
            return ()
        parts = (self.score, self.spread, self.heads, self.treat)
        return tuple(dict.fromkeys(need for one in parts for need in getattr(one, "needs", ())))

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.CACHE_ENTRIES})

    def bind(self, context: BindContext) -> CachePolicy:
        check_cache(self.name, context)
        return self

    def at(self, site: CacheSite, view: CacheView) -> Compress | None:
        if self.budget.everything or (site.when == "step" and view.fresh < self.every):
            return None
        known: dict[int, Tensor] = {}

        def scores(layer: int) -> Tensor:
            if layer not in known:
                known[layer] = self.score(view.entries(layer)).float()
            return known[layer]

        least = self.protect.sinks + self.protect.recent
        counts = layer_counts(self.budget, self.spread, view, scores, least)
        due = torch.ones_like(counts, dtype=torch.bool)
        if site.when == "step":
            due = _stored(view) >= counts + self.every
            if not bool(due.any()):
                return None
            counts = torch.ceil(counts * (1 - self.drop) - _SLACK).long()
        wanted = zip(counts.unbind(1), due.unbind(1), strict=True)
        store = _Layerwise(self, view, scores, known, dict(zip(view.layers, wanted, strict=True)))
        return Compress(view.layers, store)

    def decide(self, entries: Entries, scores: Tensor, count: Tensor, due: Tensor | None = None) -> Stored:
        """What becomes of one layer.

        scores: [B, Hkv, N]; count: [B] entries a head keeps, packed ones included; due: [B] rows of which anything is
        taken, None for all
        """
        if not self.per_head:
            scores = scores.mean(1, keepdim=True).expand_as(scores)
        protected = self.protect.mask(entries, count)
        count = (count - entries.closed[:, 0]).clamp(min=0)
        wanted = torch.maximum(self.heads(scores, entries, protected, count), protected.sum(2))
        if due is not None:
            wanted = torch.where(due[:, None], wanted, scores.shape[2])
        flat = torch.where(protected, torch.finfo(torch.float32).max, scores).flatten(0, 1)
        chosen = top_k(flat, wanted.flatten(), entries.present.flatten(0, 1)).view_as(scores)
        return self.treat(entries, chosen, protected)


@dataclass(frozen=True)
class _Layerwise:
    """Decides layer by layer, and lets go of each layer's scores."""

    policy: CachePolicy
    view: CacheView
    scores: Callable[[int], Tensor]
    known: dict[int, Tensor]
    wanted: dict[int, tuple[Tensor, Tensor]]

    def __call__(self, layer: int) -> Stored:
        # layers may lie on several devices
        entries, scores = self.view.entries(layer), self.scores(layer)
        made = self.policy.decide(entries, scores, *(one.to(scores.device) for one in self.wanted[layer]))
        self.known.pop(layer, None)
        return made


def _stored(view: CacheView) -> Tensor:
    """Entries that the fullest head of each row and layer stores [B, L]."""
    layers = [view.entries(layer) for layer in view.layers]
    counts = [(one.present.sum(2) + one.closed).amax(1) for one in layers]
    return torch.stack([count.to(counts[0].device) for count in counts], 1)


def check_cache(plugin: str, context: BindContext) -> None:
    """Raise `CapabilityError` when a model has no cache that can be compressed."""
    if context.num_layers == 0:
        context.check_layer(plugin, 0)
    if not context.cache_layers and context.family not in ("budget", "test"):
        raise CapabilityError(
            explain(
                f"{plugin} on a {context.family} model whose layers all forget what leaves a window",
                "models with layers whose cache grows with the sequence",
                "Leave the plugin out: such a cache does not grow",
            )
        )


def budget_of(keep_ratio: float | None, keep_count: int | None, keep_bytes: int | None, default: float) -> CacheBudget:
    """The budget of a method's arguments; `default` is its ratio when none is given."""
    given: dict[str, Any] = {"ratio": keep_ratio, "count": keep_count, "bytes": keep_bytes}
    if all(value is None for value in given.values()):
        given["ratio"] = default
    return CacheBudget(**given)
