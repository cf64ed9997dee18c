"""Which of the scored tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.keep import Keep
from vlm_eff.importance.select import top_k, top_k_per_group
from vlm_eff.importance.spatial import stride_grid
from vlm_eff.models.view import View


class Select(Protocol):
    """Turns scores into the tokens to keep."""

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        """Mask [B, V] of the candidates that stay."""
        ...

    def expected(self, kept: float, current: float) -> float:
        """Tokens that stay on average when `keep` says `kept` of `current`."""
        ...


@part
@dataclass(frozen=True)
class TopK:
    """The best tokens of each sample, or of each image of it ("image")."""

    per: Literal["sample", "image"] = "sample"

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans = view.spans
        if self.per == "sample":
            return top_k(scores, keep.by_scores(scores, spans.valid, view.original), spans.valid)
        original = view.image_original()
        inside = [spans.valid & (spans.image == image) for image in range(original.shape[1])]
        counts = [keep.by_scores(scores, own, original[:, image]) for image, own in enumerate(inside)]
        return top_k_per_group(scores, spans.image, torch.stack(counts, 1), spans.valid)

    def expected(self, kept: float, current: float) -> float:
        return kept


@part
@dataclass(frozen=True)
class TopKAndGrid:
    """The best tokens of each sample, and besides every `stride`-th row and column of each tile (FEATHER, stage 1).

    left: fraction of the original tokens, the whole grid among them, that earlier stages are expected to have left;
          read for what is asked alone
    """

    stride: int = 3
    left: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or self.stride < 1:
            raise ConfigError(
                explain(f"stride={self.stride!r}", "a whole number of at least 1", "Give the grid stride")
            )

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        grid = stride_grid(view.spans.y, view.spans.x, self.stride) & view.spans.valid
        return TopK()(scores, view, keep) | grid

    def expected(self, kept: float, current: float) -> float:
        # the grid and the best tokens overlap as two independent choices do
        grid = current / self.left / self.stride**2
        return kept + grid * (1 - kept / current) if current else 0.0
