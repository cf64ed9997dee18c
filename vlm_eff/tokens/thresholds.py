"""Dropping by a learned threshold: soft while it learns, hard afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from vlm_eff.core.action import Action, Bias, Keep
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin, QueryRows, Site
from vlm_eff.core.resources import Resource
from vlm_eff.importance.select import from_mask
from vlm_eff.importance.spatial import stride_grid
from vlm_eff.models.learned import LearnedWeights, check_trained
from vlm_eff.models.view import View
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.select import TopKAndGrid

# standard deviation, skew, largest value and logarithm of the number of the scores
_FACTS = 4


class ThresholdWeights(LearnedWeights):
    """One linear predictor a stage: threshold = weight . facts of the scores + bias; it begins at 0, the mean score."""

    def __init__(self, stages: int, **facts: str | int) -> None:
        super().__init__(stages=stages, **facts)
        self.weight = nn.Parameter(torch.zeros(stages, _FACTS))
        self.bias = nn.Parameter(torch.zeros(stages))

    def threshold(self, stage: int, facts: Tensor) -> Tensor:
        """Threshold of each sample [B] from `facts` [B, 4], in standard deviations from the mean score."""
        made: Tensor = (facts * self.weight[stage]).sum(1) + self.bias[stage]
        return made


@part
@dataclass(frozen=True)
class ThresholdReducer(Plugin):
    """Keeps candidates above a threshold that is predicted for each sample and stage, and an even grid.

    stages: where, and how many candidates are aimed at while learning
    """

    method: str
    stages: tuple[Stage, ...]
    grid: TopKAndGrid
    temperature: float = 0.1
    weights: str | None = None
    untrained: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, (int, float)) or not self.temperature > 0:
            raise ConfigError(explain(f"temperature={self.temperature!r}", "a number above 0", "Give the temperature"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(stage.layer or 0) for stage in self._acting())

    @property
    def needs(self) -> tuple[Observation, ...]:
        return tuple(QueryRows((stage.layer or 0) - 1) for stage in self._acting())

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.DECODER_TOKENS})

    @property
    def trains(self) -> bool:
        return True

    def _acting(self) -> list[Stage]:
        return [stage for stage in self.stages if not stage.keep.everything]

    def bind(self, context: BindContext) -> ThresholdReducer:
        bound = replace(self, stages=tuple(stage.resolved(context.num_layers) for stage in self.stages))
        layers = [stage.layer or 0 for stage in bound.stages]
        if layers != sorted(set(layers)):
            raise ConfigError(
                explain(f"{self.name} with layers {layers}", "ascending layers", "Give layers; the decoder is shallow")
            )
        for layer in layers:
            context.check_layer(self.name, layer)
        context.check_needs(self.name, bound.needs)
        return bound

    def make_weights(self, context: BindContext) -> ThresholdWeights:
        if self._acting():
            check_trained(self.name, self.weights, self.untrained, context)
        layers = " ".join(str(stage.layer) for stage in self.stages)
        made = ThresholdWeights(len(self.stages), method=self.name, model_type=context.family, layers=layers)
        if self.weights is not None:
            made.load(self.weights)
        return made

    def at(self, site: Site, view: View) -> Action | None:
        index = next(number for number, stage in enumerate(self.stages) if stage.layer == site.layer)
        share = view.spans.valid.float() if view.share is None else view.share * view.spans.valid
        score = standard(attention_received(view, share), share)
        margin = score - view.weights.threshold(index, facts(score, share))[:, None]
        spans = view.spans
        fixed = stride_grid(spans.y, spans.x, self.grid.stride) & spans.valid
        if not view.training:
            kept = (margin > 0) & spans.valid | fixed | _best(score, share > 0.5)
            if bool((kept | ~spans.valid).all()):
                return None
            selection = from_mask(kept)
            return Keep(selection.index, selection.valid)
        log_weight = torch.where(
            fixed | ~spans.valid | _best(score, share > 0.5), 0.0, logsigmoid(margin / self.temperature)
        )
        count = (log_weight.exp() * share).sum(1)
        target = self.stages[index].keep.counts(view.original, view.original).to(count.dtype)
        pictured = view.original > 0
        off = ((count - target).abs() / view.original.clamp(min=1))[pictured]
        return Bias(log_weight, off.mean() if len(off) else None)

    def asked(self, visual_tokens: int, num_layers: int) -> list[float]:
        counts, now = [], float(visual_tokens)
        at = {stage.resolved(num_layers).layer: stage for stage in self.stages}
        for layer in range(num_layers):
            if layer in at and visual_tokens:
                now = at[layer].keep.of_count(visual_tokens, now)
            counts.append(now)
        return counts


def attention_received(view: View, share: Tensor) -> Tensor:
    """Half what the visual tokens and half what the words after them pay to each candidate [B, V], a look.

    share: [B, V] how much of each candidate is still there; only those that mostly are may look.
    """
    wanted = QueryRows(view.layer - 1)
    parts = []
    for rows in (view.candidates().only(share > 0.5), view.text("after")):
        got, looks = view.attention(wanted, rows).to(view.candidates())
        parts.append(got / looks.clamp(min=1))
    return (parts[0] + parts[1]) / 2


def standard(score: Tensor, share: Tensor) -> Tensor:
    """Logarithm of the score, in standard deviations from its mean over what is there; both [B, V]."""
    logs = score.clamp(min=1e-9).log()
    total = share.sum(1, keepdim=True).clamp(min=1e-9)
    centred = logs - (logs * share).sum(1, keepdim=True) / total
    spread = (centred.square() * share).sum(1, keepdim=True).div(total).sqrt()
    return centred / spread.clamp(min=1e-6)


def facts(score: Tensor, share: Tensor) -> Tensor:
    """What the predictor reads of the standardised scores [B, 4]: mean size, skew, largest, log of the number."""
    total = share.sum(1).clamp(min=1e-9)
    size = (score.abs() * share).sum(1) / total
    skew = (score.pow(3) * share).sum(1) / total
    largest = score.masked_fill(share <= 0.5, float("-inf")).amax(1).nan_to_num(neginf=0.0)
    return torch.stack([size, skew, largest, total.clamp(min=1).log()], 1)


def _best(score: Tensor, there: Tensor) -> Tensor:
    """The best candidate of each sample, so that something stays."""
    first = score.masked_fill(~there, float("-inf")).argmax(1, keepdim=True)
    return torch.zeros_like(there).scatter(1, first, True) & there
