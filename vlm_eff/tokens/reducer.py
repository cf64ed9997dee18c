"""The engine of the room: score x select x reduce x schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from vlm_eff.core.action import Action
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin, Site
from vlm_eff.core.resources import Resource
from vlm_eff.importance.keep import check_choice
from vlm_eff.models.view import View
from vlm_eff.tokens.reduce.drop import Drop, RankedReduce, Reduce
from vlm_eff.tokens.schedule import Stage, resolve


@part
@dataclass(frozen=True)
class TokenReducer(Plugin):
    """Reduces visual tokens at the inputs of decoder layers during prefill.

    stages:         in ascending order of layers
    reduce:         what becomes of the tokens, unless a stage says otherwise
    position_mode:  "kept": survivors keep their rotary positions. "reindexed": they are numbered without gaps, and so
                    are all later tokens (one-axis rotary families only)
    """

    method: str
    stages: tuple[Stage, ...]
    reduce: Reduce = field(default_factory=Drop)
    position_mode: Literal["kept", "reindexed"] = "kept"

    def __post_init__(self) -> None:
        check_choice("positions", self.position_mode, ("kept", "reindexed"))
        if not self.stages:
            raise ConfigError(explain(f"{self.method} without a stage", "one stage or more", "Give a stage"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def positions(self) -> str:
        return self.position_mode

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(_layer(stage)) for stage in self.stages)

    @property
    def needs(self) -> tuple[Observation, ...]:
        # a stage that keeps everything or nothing observes nothing
        scored = [s for s in self.stages if s.score is not None and not s.keep.everything and not s.keep.nothing]
        wanted = (part_needs(part, _layer(s)) for s in scored for part in (s.score, s.select, s.reduce or self.reduce))
        return tuple(dict.fromkeys(need for part in wanted for need in part))

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset(Resource.DECODER_TOKENS if site.layer else Resource.ENTRY_TOKENS for site in self.sites)

    def bind(self, context: BindContext) -> TokenReducer:
        bound = replace(self, stages=resolve(self.stages, context.num_layers))
        layers = [site.layer for site in bound.sites]
        moved = any(stage.depth is not None for stage in self.stages) and layers[-1] >= context.num_layers
        if moved or layers != sorted(set(layers)):
            raise ConfigError(
                explain(
                    f"{self.name} with stages at layers {layers} of {context.num_layers}",
                    "ascending layers, one stage each",
                    "Give the layers yourself; the decoder may be too shallow for the default ones",
                )
            )
        for layer in layers:
            context.check_layer(self.name, layer)
        context.check_needs(self.name, bound.needs)
        return bound

    def at(self, site: Site, view: View) -> Action | None:
        stage = next(stage for stage in self.stages if stage.layer == site.layer)
        if stage.keep.everything or not view.spans.slot.shape[1]:
            # nothing may go, or an earlier stage left no row a candidate
            return None
        reduce = stage.reduce or self.reduce
        if stage.keep.nothing:
            return reduce(view, stage.keep, torch.zeros_like(view.spans.valid))
        if stage.score is None:
            return reduce(view, stage.keep, None)
        scores = stage.score(view)
        chosen = stage.select(scores, view, stage.keep)
        if bool((chosen | ~view.spans.valid).all()):
            # every candidate stays: leave the sequence untouched, bit for bit
            return None
        if isinstance(reduce, RankedReduce):
            return reduce.ranked(view, chosen, scores)
        return reduce(view, stage.keep, chosen)

    def asked(self, visual_tokens: int, num_layers: int) -> list[float]:
        counts, now = [], float(visual_tokens)
        at = {_layer(stage): stage for stage in resolve(self.stages, num_layers)}
        for layer in range(num_layers):
            if layer in at and visual_tokens and not at[layer].keep.everything:
                before, now = now, _wanted(at[layer], visual_tokens, now)
                reduce = at[layer].reduce or self.reduce
                now += reduce.added(before - now) if isinstance(reduce, RankedReduce) else 0.0
            counts.append(now)
        return counts


def part_needs(part: Any, layer: int) -> tuple[Observation, ...]:
    """What a score, selection or reduction has to see for a stage at `layer`; most of them nothing."""
    needs = getattr(part, "needs", None)
    return needs(layer) if needs is not None else ()


def _wanted(stage: Stage, original: int, now: float) -> float:
    if stage.keep.adaptive or math.isnan(now):
        # once the scores have decided, nobody knows what later stages start from
        return math.nan
    return stage.select.expected(stage.keep.of_count(original, now), now)


def _layer(stage: Stage) -> int:
    if stage.layer is None:
        raise ConfigError(
            explain("a stage whose layer is still relative", "a bound plugin", "Use the plugin through attach()")
        )
    return stage.layer
