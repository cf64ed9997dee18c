"""Merge what is not looked at into a few tokens that are spread over the image (VisionZip)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.action import Action, Merge
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation, TowerFeatures, TowerKeys
from vlm_eff.importance import keep as budget
from vlm_eff.importance.select import from_mask, top_k_per_group
from vlm_eff.kernels.bipartite_match import best_partner
from vlm_eff.kernels.merge import sum_into
from vlm_eff.models.view import View


def contextual_count(share: float, total: Tensor) -> Tensor:
    """Tokens of a budget `total` [...] that are contextual; at least one is left to the dominant ones."""
    return torch.minimum((total.double() * share).round().long(), (total - 1).clamp(min=0))


def image_counts(view: View, keep: budget.Keep) -> Tensor:
    """Budget of each image of each row [B, G]."""
    original, spans = view.image_original(), view.spans
    current = original.new_zeros(original.shape).scatter_add_(1, spans.image, spans.valid.to(original.dtype))
    return keep.counts(original, current)


@part
@dataclass(frozen=True)
class Dominant:
    """The best tokens of each image, as many as its budget leaves beside the contextual ones of `ContextMerge`.

    contextual: share of the budget that is contextual, [0, 1), rounded to the nearest token
    """

    contextual: float

    def __post_init__(self) -> None:
        share = self.contextual
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ConfigError(explain(f"contextual={share!r}", "a fraction in [0, 1)", "Give the share to merge into"))

    def __call__(self, scores: Tensor, view: View, keep: budget.Keep) -> Tensor:
        total = image_counts(view, keep)
        best = total - contextual_count(self.contextual, total)
        return top_k_per_group(scores, view.spans.image, best, view.spans.valid)

    def expected(self, kept: float, current: float) -> float:
        # the reduction adds the contextual ones
        return kept


@part
@dataclass(frozen=True)
class ContextMerge:
    """Of each image's other tokens some at an even stride stay; each one left joins the one of them most like it.

    contextual: as in `Dominant`
    block:      tower block whose keys, mean over heads, tell how alike two tokens are (cosine)
    faithful:   True adds the mean of those that join to the token, as the released code does, which about doubles its
                length; False takes the mean of all of them
    Where the projector works token by token, features are merged before it; elsewhere what the projector made of them.
    """

    contextual: float
    block: int | None = None
    faithful: bool = False

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (TowerKeys(self.block), TowerFeatures()) if self.contextual else ()

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action:
        assert chosen is not None
        total, spans = image_counts(view, keep), view.spans
        targets = spread_targets(spans.valid & ~chosen, spans.image, contextual_count(self.contextual, total))
        hidden, weight = view.visual_hidden(), torch.ones_like(spans.slot, dtype=torch.float32)
        if bool(targets.any()):
            hidden, weight = self._merge(view, targets, spans.valid & ~chosen & ~targets, hidden, weight)
        kept = from_mask(chosen | targets)
        wide = kept.index[:, :, None].expand(-1, -1, hidden.shape[2])
        return Merge(kept.index, kept.valid, hidden.gather(1, wide), weight.gather(1, kept.index))

    def _merge(
        self, view: View, targets: Tensor, others: Tensor, hidden: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [B, V, D] and weights [B, V] with merged contents at `targets` [B, V]."""
        seat = from_mask(targets)
        goal = nearest_target(view.tower_keys(TowerKeys(self.block)), view.spans.image, others, seat.index, seat.valid)
        features = view.tower_features(TowerFeatures())
        work = features.to(torch.promote_types(features.dtype, torch.float32))
        slot = torch.where(others, goal, -1)
        joined = sum_into(work, slot, seat.index.shape[1])
        count = sum_into(torch.ones_like(work[:, :, :1]), slot, seat.index.shape[1])
        own = work.gather(1, seat.index[:, :, None].expand(-1, -1, work.shape[2]))
        made = own + joined / count.clamp(min=1) if self.faithful else (own + joined) / (count + 1)
        merged = view.project(made.to(features.dtype)).to(hidden.dtype)
        # a token that nobody joined stays as it is, bit for bit
        taken = seat.valid & (count[:, :, 0] > 0)
        spare = hidden.shape[1]
        column = torch.where(taken, seat.index, spare)
        wide = torch.cat([hidden, hidden[:, :1]], 1)
        wide = wide.scatter(1, column[:, :, None].expand_as(merged), merged)[:, :spare]
        weights = torch.cat([weight, weight[:, :1]], 1).scatter(1, column, 1 + count[:, :, 0].float())[:, :spare]
        return wide, weights


def spread_targets(candidates: Tensor, image: Tensor, count: Tensor) -> Tensor:
    """Of each image's `candidates` [B, V] in order every n-th, `count` [B, G] of them [B, V]; n is as large as goes."""
    made = torch.zeros_like(candidates)
    for number in range(count.shape[1]):
        here = candidates & (image == number)
        wanted = count[:, number, None].minimum(here.sum(1, keepdim=True))
        stride = torch.div(here.sum(1, keepdim=True), wanted.clamp(min=1), rounding_mode="floor").clamp(min=1)
        place = here.cumsum(1) - 1
        made |= here & (place % stride == 0) & (torch.div(place, stride, rounding_mode="floor") < wanted)
    return made


def nearest_target(keys: Tensor, image: Tensor, others: Tensor, target: Tensor, exists: Tensor) -> Tensor:
    """For each of `others` [B, V] the most similar target of its image: a number below K; ties to the lower [B, V].

    keys: [B, V, C]; target: [B, K] columns of the targets, of which `exists` [B, K] do.
    """
    # what comes out are places: no gradient passes through them
    keys = keys.detach()
    against = keys.gather(1, target[:, :, None].expand(-1, -1, keys.shape[2]))
    home = torch.where(exists, image.gather(1, target), -1)
    return best_partner(keys, against, source_group=torch.where(others, image, -1), goal_group=home)[1]
