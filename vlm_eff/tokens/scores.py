"""Scores of visual tokens: which observation, and which importance function ranks it. Higher means keep."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.plugin import Observation, QueryRow
from vlm_eff.importance.attention import paid_scores, row_scores
from vlm_eff.importance.spatial import spread_order
from vlm_eff.models.view import View


class Score(Protocol):
    """Ranks the candidates of a view."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        """What must be observed for a stage at `layer`."""
        ...

    def __call__(self, view: View) -> Tensor:
        """Scores [B, V] float32, finite, higher = keep."""
        ...


@part
@dataclass(frozen=True)
class QueryAttention:
    """Attention that the last prompt token pays to each candidate, mean over heads.

    when: "inside" the layer before the stage (FastV, FEATHER) or "before" with the stage layer's own projections
          (PyramidDrop), which costs one key projection
    rope: False takes the rotary rotation out; over: softmax over "all" keys or the "visual" candidates alone
    """

    when: Literal["inside", "before"] = "inside"
    rope: bool = True
    over: Literal["all", "visual"] = "all"

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (self._row(layer),)

    def _row(self, layer: int) -> QueryRow:
        return QueryRow(layer - 1 if self.when == "inside" else layer, self.when, self.rope)

    def __call__(self, view: View) -> Tensor:
        if self.over == "all":
            seen = view.attention(self._row(view.layer), view.prompt.last())
            return paid_scores(seen.weight, seen.columns, view.spans.valid)
        logits, columns = view.query_logits(self._row(view.layer))
        return row_scores(logits, columns, view.spans.valid, over=self.over)


@part
@dataclass(frozen=True)
class Even:
    """All tokens are worth the same: for selections that look at the tokens alone."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        return view.spans.valid.float()


@part
@dataclass(frozen=True)
class RandomScore:
    """Uniform random scores from the seed and the prompt: the same for every beam, batch and padding of one prompt."""

    seed: int = 0

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        rows, width = view.spans.slot.shape
        scores = torch.zeros(rows, width)
        for row, (prompt, count) in enumerate(zip(view.prompt_hash(), view.spans.count.tolist(), strict=True)):
            seed = zlib.crc32(f"{self.seed} {prompt} {view.layer}".encode())
            scores[row, :count] = torch.rand(count, generator=torch.Generator().manual_seed(seed))
        return scores.to(view.spans.slot.device)


@part
@dataclass(frozen=True)
class GridSpread:
    """Scores by place alone: any number of best tokens covers each tile or frame evenly."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        spans = view.spans
        valid, group, y, x = (t.cpu().numpy() for t in (spans.valid, spans.group, spans.y, spans.x))
        scores = np.zeros(valid.shape, dtype=np.float32)
        for row in range(len(valid)):
            for number in np.unique(group[row][valid[row]]):
                at = np.flatnonzero(valid[row] & (group[row] == number))
                # what is left of a tile keeps its grid; a tile without a known grid is spread along its order
                known = y[row, at].min() >= 0
                rows, columns = (y[row, at], x[row, at]) if known else (np.zeros_like(at), np.arange(len(at)))
                width = int(columns.max()) + 1
                order = np.asarray(spread_order(int(rows.max()) + 1, width))
                # rank relative to the tile's size, so that tiles of different sizes are thinned alike
                scores[row, at] = -order[rows * width + columns] / len(order)
        return torch.from_numpy(scores).to(spans.slot.device)
