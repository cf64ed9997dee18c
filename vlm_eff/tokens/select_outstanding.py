"""The tokens whose score stands out, and besides some that are spread over the image (LLaVA-PruMerge)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.importance.keep import Keep, check_choice
from vlm_eff.importance.select import top_k_per_group
from vlm_eff.importance.spatial import stride_grid
from vlm_eff.models.view import View
from vlm_eff.tokens.scores import GridSpread

# of a budget that is a number, the share that goes by score when tokens are spread besides: 32 of 128
_BY_SCORE = 4


@part
@dataclass(frozen=True)
class OutstandingTokens:
    """The best tokens of each image, as many as its budget says; a number leaves room for one summary token.

    spread: "none"; "grid" adds every n-th row and column of each tile; "line" every n-th token of the image's raster
            (released code). N tokens of which k are outstanding give a stride of floor(N / k) // 3 tokens: n is that
            or, for the grid, the root of it. Where the budget is a number, a quarter of it goes by score and the rest
            is spread evenly, so that the number is met.
    """

    spread: Literal["none", "grid", "line"] = "none"

    def __post_init__(self) -> None:
        check_choice("spread", self.spread, ("none", "grid", "line"))

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans, original = view.spans, view.image_original()
        inside = [spans.valid & (spans.image == image) for image in range(original.shape[1])]
        counts = [keep.by_scores(scores, own, original[:, image]) for image, own in enumerate(inside)]
        count = torch.stack(counts, 1)
        if not keep.adaptive:
            return self._by_number(scores, view, (count - 1).clamp(min=1).minimum(count))
        made = top_k_per_group(scores, spans.image, count, spans.valid)
        if self.spread != "none":
            for image, own in enumerate(inside):
                made |= own & self._spread(view, own, count[:, image])
        return made

    def _by_number(self, scores: Tensor, view: View, count: Tensor) -> Tensor:
        spans = view.spans
        if self.spread == "none":
            return top_k_per_group(scores, spans.image, count, spans.valid)
        best = (count + _BY_SCORE - 1) // _BY_SCORE
        first = top_k_per_group(scores, spans.image, best, spans.valid)
        left = spans.valid & ~first
        # a tile's ranks are relative to its size, from 0 down to -1
        return first | top_k_per_group(GridSpread()(view), spans.image, count - best, left)

    def _spread(self, view: View, own: Tensor, count: Tensor) -> Tensor:
        size = own.sum(1)
        # the released code divides by zero where more than a third stands out: then every token is on the grid
        stride = (size // count.clamp(min=1) // 3).clamp(min=1)[:, None]
        if self.spread == "line":
            place = own.cumsum(1) - 1
            # range(0, 575, stride): the last of 576 tokens is never added
            return (place % stride == 0) & (place < size[:, None] - 1)
        step = stride.double().sqrt().round().long().clamp(min=1)
        known, place = view.spans.y >= 0, own.cumsum(1) - 1
        return torch.where(known, stride_grid(view.spans.y, view.spans.x, step), place % stride == 0)

    def expected(self, kept: float, current: float) -> float:
        # the summary token is one of them
        return kept
