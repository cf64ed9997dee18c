"""Selections of tokens that are unlike one another, by the cosine of their hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.importance.determinant import dpp
from vlm_eff.importance.greedy import max_min
from vlm_eff.importance.keep import Keep
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class MaxMin:
    """Tokens far apart from one another (DivPrune); the scores only say how many, where `keep` asks them."""

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        valid = view.spans.valid
        return max_min(view.visual_hidden(), keep.by_scores(scores, valid, view.original), valid)

    def expected(self, kept: float, current: float) -> float:
        return kept


@part
@dataclass(frozen=True)
class Determinantal:
    """Tokens that score high and are unlike one another: a determinantal process whose qualities are the scores.

    Scores must not be negative (CDPruner).
    """

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        valid = view.spans.valid
        return dpp(view.visual_hidden(), scores, keep.by_scores(scores, valid, view.original), valid)

    def expected(self, kept: float, current: float) -> float:
        return kept
