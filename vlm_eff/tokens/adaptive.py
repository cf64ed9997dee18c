"""Budgets that follow the content: one budget shared out over several images, and a curve over the layers.

How many tokens a sample needs is said by `Keep(mass=...)` and `Keep(rule=...)`, which work with every selection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.adaptive import apportion, logistic_curve
from vlm_eff.importance.keep import Keep, check_choice, check_ratio
from vlm_eff.importance.select import top_k_per_group
from vlm_eff.models.view import View
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores import Score


@part
@dataclass(frozen=True)
class SharedTopK:
    """One budget for the sample, shared out over its images or tiles; in each of them the best tokens.

    The budget is what `keep` says of the whole sample. Shares are whole tokens by largest remainder, never more than a
    group has, and sum to the budget exactly.
    weight: what a group's share is proportional to: the "mass" of its scores (at least 0), their "mean" (so that large
            images get no more than small ones), or its number of "tokens"
    floor:  tokens that each group gets first, as far as the budget pays for it
    over:   "image" (a video is one) or "group" (tile or frame)
    """

    weight: Literal["mass", "mean", "tokens"] = "mass"
    floor: int = 1
    over: Literal["image", "group"] = "image"

    def __post_init__(self) -> None:
        check_choice("weight", self.weight, ("mass", "mean", "tokens"))
        check_choice("over", self.over, ("image", "group"))
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 0:
            raise ConfigError(
                explain(f"floor={self.floor!r}", "a whole number of at least 0", "Give the least tokens of an image")
            )

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans = view.spans
        total = keep.by_scores(scores, spans.valid, view.original)
        group = spans.image if self.over == "image" else spans.group
        groups = int(group.masked_fill(~spans.valid, 0).max()) + 1
        inside = (group[:, None] == torch.arange(groups, device=group.device)[:, None]) & spans.valid[:, None]
        share = apportion(self._weights(scores, inside), total, inside.sum(2), self.floor)
        return top_k_per_group(scores, group, share, spans.valid)

    def _weights(self, scores: Tensor, inside: Tensor) -> Tensor:
        """Weight of each group [B, G] float64."""
        size = inside.sum(2).double()
        if self.weight == "tokens":
            return size
        if bool(((scores[:, None] < 0) & inside).any()):
            raise ConfigError(
                explain(
                    f"weight={self.weight!r} with scores below 0, which have no share of a sum",
                    "scores of at least 0, such as attention",
                    'Use weight="tokens", or another score',
                )
            )
        mass = (scores[:, None].double() * inside).sum(2)
        return mass if self.weight == "mass" else mass / size.clamp(min=1)

    def expected(self, kept: float, current: float) -> float:
        return kept


def logistic_stages(
    score: Score,
    keep_ratio: float = 0.5,
    depths: Sequence[float] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875),
    slope: float = 12.8,
    middle: float = 0.466,
) -> tuple[Stage, ...]:
    """Stages whose fractions fall along a logistic curve over the decoder (AutoPrune's retention curve).

    score:      ranks the tokens at every stage; one that reads a layer before the stage needs no layer 0
    keep_ratio: fraction of the visual tokens kept on average from the first stage to the end, (0, 1]
    depths:     where the stages stand, ascending fractions of the decoder
    slope, middle: of the curve, in fractions of the decoder: AutoPrune's k0 = 0.4 a layer and x0 = 14.9 of 32 layers
    The paper's code sets the slope of each sample by the mutual information of text and image; here it is one number.

    Raises:
        ConfigError: a ratio outside (0, 1], depths that do not ascend between 0 and 1.
    """
    check_ratio("keep_ratio", keep_ratio)
    if not depths or list(depths) != sorted(set(depths)) or not (depths[0] > 0 and depths[-1] < 1):
        raise ConfigError(explain(f"depths={tuple(depths)!r}", "ascending fractions between 0 and 1", "Correct them"))
    if not math.isfinite(slope) or slope < 0:
        raise ConfigError(explain(f"slope={slope!r}", "a number of at least 0", "Give a falling curve"))
    lasts = [after - depth for depth, after in zip(depths, [*depths[1:], 1.0], strict=True)]
    ratios = logistic_curve(depths, keep_ratio, slope, middle, lasts)
    return tuple(
        Stage(Keep(ratio=ratio), depth=depth, score=score) for depth, ratio in zip(depths, ratios, strict=True)
    )
