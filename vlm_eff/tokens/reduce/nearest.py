"""Let kept tokens take in their nearest neighbours, and one more token all that is dropped (LLaVA-PruMerge)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.action import Action, Merge
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation, TowerFeatures, TowerKeys
from vlm_eff.importance import keep as budget
from vlm_eff.importance.select import Selection, from_mask
from vlm_eff.importance.similarity import blocks
from vlm_eff.models.view import View
from vlm_eff.tokens.reduce.context import image_counts
from vlm_eff.tokens.scores_tower import TowerScore


@part
@dataclass(frozen=True)
class NeighbourMerge:
    """A kept token i becomes x_i + sum of a_j x_j over its nearest tokens j of the image, kept or not.

    neighbours: how many, by cosine of tower keys (heads side by side)
    weights:    gives the a_j, which are not normalised (released code); keys are those of its block
    summary:    one more token, the sum of a_j x_j over what the image drops, stands at the last dropped place; a budget
                that is a number has room for it, see `OutstandingTokens`
    Where the projector works token by token, features are merged before it; elsewhere what the projector made of them.
    """

    weights: TowerScore
    neighbours: int = 32
    summary: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 0:
            raise ConfigError(
                explain(f"neighbours={self.neighbours!r}", "a whole number of at least 0", "Give a number of tokens")
            )

    @property
    def _keys(self) -> TowerKeys:
        return TowerKeys(self.weights.block, "joined")

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (*self.weights.needs(layer), self._keys, TowerFeatures())

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action:
        assert chosen is not None
        spans, features = view.spans, view.tower_features(TowerFeatures())
        work = features.to(torch.promote_types(features.dtype, torch.float32))
        weights = self.weights(view).to(work.dtype).masked_fill(~spans.valid, 0.0)
        kept = from_mask(chosen)
        made = self._taken_in(view, kept, work, weights)
        place, sums, stands = self._summaries(view, keep, chosen, work, weights)
        every = torch.cat([work, work[:, :1]], 1).scatter(1, _wide(kept, spans.slot.shape[1], made), made)
        every = every.scatter(1, place[:, :, None].expand_as(sums), sums)[:, :-1]
        counts = torch.cat([torch.ones_like(work[:, :, 0]), work[:, :1, 0]], 1).scatter(1, place, stands)[:, :-1]
        # places beyond the last column say that there is no summary
        there = torch.zeros_like(counts, dtype=torch.bool)
        there = torch.cat([there, there[:, :1]], 1).scatter(1, place, True)[:, :-1]
        final = from_mask(chosen | there)
        picked = every.gather(1, final.index[:, :, None].expand(-1, -1, every.shape[2]))
        hidden = view.project(picked.to(features.dtype))
        return Merge(final.index, final.valid, hidden, counts.gather(1, final.index).float())

    def _taken_in(self, view: View, kept: Selection, work: Tensor, weights: Tensor) -> Tensor:
        """New features of the kept tokens [B, K, Dv]."""
        spans, keys = view.spans, view.tower_keys(self._keys)
        wide = kept.index[:, :, None]
        own = work.gather(1, wide.expand(-1, -1, work.shape[2]))
        column, image = torch.arange(spans.slot.shape[1], device=keys.device), spans.image.gather(1, kept.index)
        parts = []
        for start, like in blocks(keys.gather(1, wide.expand(-1, -1, keys.shape[2])), kept.valid, keys):
            stop = start + like.shape[1]
            usable = (spans.image[:, None] == image[:, start:stop, None]) & spans.valid[:, None]
            usable &= column != wide[:, start:stop]
            ranked = like.masked_fill(~usable, -2.0).sort(dim=2, descending=True, stable=True).indices
            near = torch.zeros_like(usable).scatter_(2, ranked[:, :, : self.neighbours], True) & usable
            parts.append((near * weights[:, None]) @ work)
        return own + torch.cat(parts, 1)

    def _summaries(
        self, view: View, keep: budget.Keep, chosen: Tensor, work: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image: column of its summary [B, G], V where it has none; the sum [B, G, Dv]; tokens in it [B, G]."""
        spans = view.spans
        width, images = spans.slot.shape[1], int(spans.image.max()) + 1
        number = torch.arange(images, device=spans.slot.device)
        gone = (spans.valid & ~chosen)[:, None] & (spans.image[:, None] == number[:, None])
        column = torch.arange(width, device=gone.device)
        last = torch.where(gone, column, -1).amax(2)
        stands = gone.sum(2)
        wanted = (stands > 0) & self.summary
        if not keep.adaptive:
            taken = torch.stack([(chosen & (spans.image == image)).sum(1) for image in range(images)], 1)
            wanted &= image_counts(view, keep)[:, :images] > taken
        place = torch.where(wanted, last, width)
        return place, (gone * weights[:, None]) @ work, stands.to(work.dtype)


def _wide(kept: Selection, spare: int, like: Tensor) -> Tensor:
    return torch.where(kept.valid, kept.index, spare)[:, :, None].expand_as(like)
