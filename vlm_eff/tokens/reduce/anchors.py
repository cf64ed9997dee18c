"""Merge what is left of each segment of a video into a few tokens of dense places (FastVID)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.action import Action
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance import keep as budget
from vlm_eff.importance.adaptive import share_out
from vlm_eff.importance.cluster import dpc_scores
from vlm_eff.importance.segments import cut_by_similarity, frame_vectors
from vlm_eff.importance.select import top_k
from vlm_eff.kernels.bipartite_match import best_partner
from vlm_eff.kernels.merge import sum_into
from vlm_eff.models.view import View
from vlm_eff.tokens.films import Film, films
from vlm_eff.tokens.reduce.written import Contents
from vlm_eff.tokens.select_video import merged_count


@part
@dataclass(frozen=True)
class DensityAnchors:
    """Every `every`-th frame of a segment, counted from its end, holds anchors; the other tokens join the nearest.

    Anchors are the density peaks among a frame's tokens that were not chosen. A segment has as many as its frames'
    budgets leave to merging, shared evenly among its anchor frames. The anchor's own part in the mean is at least
    `own`, and 1 / (n + 1) where fewer than that join (n tokens).

    segments, threshold: cut at the `segments` - 1 least alike neighbours and at all less alike than `threshold`
    context:    part of each frame's budget that is merged, as in `PerFrame`
    neighbours: tokens that make the density
    faithful:   also cut between frames that are the same picture, until there are `segments`
    """

    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    every: int = 4
    neighbours: int = 4
    own: float = 0.6
    faithful: bool = False

    def __post_init__(self) -> None:
        for name in ("segments", "every", "neighbours"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(explain(f"{name}={value!r}", "a whole number of at least 1", f"Correct {name}"))
        for name, low in (("threshold", -1), ("context", 0), ("own", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= 1:
                raise ConfigError(explain(f"{name}={value!r}", f"a number from {low} to 1", f"Correct {name}"))

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action:
        assert chosen is not None
        made = Contents.of(view, chosen)
        hidden = made.hidden
        for film in films(view.spans):
            x, present = film.values(hidden), film.present
            rest = present & ~film.values(chosen)
            vectors = frame_vectors(x, present)
            for segment in cut_by_similarity(vectors, self.segments, self.threshold, cut_same=self.faithful):
                part = slice(segment.start, segment.stop)
                self._merge(made, film, part, x[part], rest[part], self._budget(present[part], keep))
        return made.merge()

    def _budget(self, present: Tensor, keep: budget.Keep) -> int:
        return sum(merged_count(keep.of_count(size, size), self.context) for size in present.sum(1).tolist())

    def _merge(self, made: Contents, film: Film, part: slice, x: Tensor, rest: Tensor, count: int) -> None:
        """Write the anchors of one segment: x [F, P, D] its tokens, of which `rest` [F, P] were not chosen."""
        hosts = list(range(len(x) - 1, -1, -self.every))[::-1]
        shares = share_out([1.0] * len(hosts), count, rest[hosts].sum(1).tolist())
        if not any(shares):
            return
        peaks = torch.zeros_like(rest)
        density = dpc_scores(x[hosts], self.neighbours, rest[hosts])
        peaks[hosts] = top_k(density, torch.tensor(shares, device=x.device), rest[hosts])
        column, wide = film.column[part], x.flatten(0, 1)
        anchors, others = peaks.flatten().nonzero()[:, 0], (rest & ~peaks).flatten().nonzero()[:, 0]
        total, joined = wide.new_zeros(len(anchors), x.shape[2]), wide.new_zeros(len(anchors))
        if len(others):
            nearest = best_partner(wide[None, others], wide[None, anchors])[1]
            total = sum_into(wide[None, others], nearest, len(anchors))[0]
            joined = sum_into(torch.ones_like(wide[None, others, :1]), nearest, len(anchors))[0, :, 0]
        own = torch.where(joined > 0, (1 / (joined + 1)).clamp(min=self.own), 1.0)[:, None]
        mean = total / joined.clamp(min=1)[:, None]
        made.write(film.row, column.flatten()[anchors], own * wide[anchors] + (1 - own) * mean, joined + 1)
