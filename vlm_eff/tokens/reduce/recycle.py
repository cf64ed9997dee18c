"""Give a few of the tokens that would go a second life, merged by clusters (SparseVLM)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.action import Action, Merge
from vlm_eff.core.config import part
from vlm_eff.importance import keep as budget
from vlm_eff.importance.cluster import dpc_knn
from vlm_eff.importance.select import from_mask, top_k
from vlm_eff.kernels.merge import sum_into
from vlm_eff.models.view import View
from vlm_eff.tokens.reduce.drop import Drop

_SLACK = 1e-9


@part
@dataclass(frozen=True)
class Recycle:
    """The best of the tokens that go are clustered, and each cluster's mean stays in the place of its centre.

    share:      of the tokens that go, so many and one more are clustered
    size:       tokens a cluster, on average: a tenth (and one more) of the clustered ones become centres
    neighbours: of a token that make its density (density-peak clustering, ties to the lower index, no noise)
    """

    share: float = 0.3
    size: int = 10
    neighbours: int = 5

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action:
        return Drop()(view, keep, chosen)

    def added(self, dropped: float) -> float:
        """Tokens that come back when `dropped` go."""
        if not dropped > 0:
            return 0.0
        taken = min(math.floor(self.share * dropped + _SLACK) + 1, dropped)
        return min(taken // self.size + 1, taken)

    def ranked(self, view: View, chosen: Tensor, scores: Tensor) -> Action:
        """Keep `chosen` [B, V] as they are, merge the best of the others by `scores` [B, V]."""
        gone = view.spans.valid & ~chosen
        count = gone.sum(1)
        taken = ((self.share * count.double() + _SLACK).floor().long() + 1).minimum(count)
        pool = from_mask(top_k(scores, taken, gone))
        clusters = (torch.div(taken, self.size, rounding_mode="floor") + 1).minimum(taken)
        hidden = view.visual_hidden()
        wide = (-1, -1, hidden.shape[2])
        states = hidden.gather(1, pool.index[:, :, None].expand(wide))
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        centres, goal = dpc_knn(states, clusters, self.neighbours, pool.valid)
        goal = torch.where(pool.valid, goal, -1)
        total = sum_into(states, goal, goal.shape[1])
        weight = sum_into(torch.ones_like(states[:, :, :1]), goal, goal.shape[1])[:, :, 0].float()
        mean = (total / weight.clamp(min=1)[:, :, None].to(total.dtype)).to(hidden.dtype)
        return self._merge(chosen, hidden, pool.index, centres & pool.valid, mean, weight)

    def _merge(
        self, chosen: Tensor, hidden: Tensor, column: Tensor, centres: Tensor, mean: Tensor, weight: Tensor
    ) -> Merge:
        spare = hidden.shape[1]
        seat = torch.where(centres, column, spare)
        wide = torch.cat([hidden, hidden[:, :1]], 1).scatter(1, seat[:, :, None].expand_as(mean), mean)[:, :spare]
        ones = torch.ones(chosen.shape[0], spare + 1, device=chosen.device)
        weights = ones.scatter(1, seat, weight)
        stays = torch.cat([chosen, chosen[:, :1]], 1).scatter(1, seat, True)[:, :spare]
        kept = from_mask(stays)
        states = wide.gather(1, kept.index[:, :, None].expand(-1, -1, hidden.shape[2]))
        return Merge(kept.index, kept.valid, states, weights.gather(1, kept.index))
