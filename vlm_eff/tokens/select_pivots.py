"""Selection around pivots: what is least like them stays (DART)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.keep import Keep, check_choice
from vlm_eff.importance.select import ranks, top_k
from vlm_eff.models.view import View
from vlm_eff.tokens.scores_hidden import KeyNorm


@part
@dataclass(frozen=True)
class LeastLikePivots:
    """The visual pivots, and the candidates that are least cosine-similar to visual and text pivots.

    pivots, text_pivots: how many visual and text tokens with the highest score are pivots
    rope: as in the stage's score, a `KeyNorm`, which ranks the text as well
    rule: "rounds": each pivot in turn takes its share of what is left, the least similar first (DART); "nearest": a
          candidate counts by its nearest pivot, so that copies of any pivot go before everything else
    """

    pivots: int = 4
    text_pivots: int = 4
    rope: bool = False
    rule: Literal["rounds", "nearest"] = "rounds"

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, ("rounds", "nearest"))
        for name, count, least in (("pivots", self.pivots, 1), ("text_pivots", self.text_pivots, 0)):
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ConfigError(
                    explain(f"{name}={count!r}", f"a whole number of at least {least}", "Give the number of pivots")
                )

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        valid = view.spans.valid
        count = keep.counts(view.original, view.spans.count)
        kept = top_k(scores, count.clamp(max=self.pivots), valid)
        likeness, exists = self._likeness(scores, view)
        left = count - kept.sum(1)
        if self.rule == "nearest":
            nearest = likeness.masked_fill(~exists[:, :, None], -2.0).amax(1)
            return kept | top_k(-nearest, left, valid & ~kept)
        share, rest = left // exists.sum(1).clamp(min=1), left % exists.sum(1).clamp(min=1)
        number = exists.long().cumsum(1) - 1
        for pivot in range(exists.shape[1]):
            taken = torch.where(exists[:, pivot], share + (number[:, pivot] < rest), 0)
            kept = kept | top_k(-likeness[:, pivot], taken, valid & ~kept)
        return kept

    def _likeness(self, scores: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Cosine of every candidate to every pivot [B, P, V], best pivots first, and which pivots exist [B, P]."""
        text = view.text("all")
        visual, visual_ok = _best(scores, view.spans.valid, self.pivots)
        words, words_ok = _best(KeyNorm(self.rope).of(view, text), text.valid, self.text_pivots)
        at = torch.cat([view.physical.gather(1, visual), view.physical_of(text).gather(1, words)], 1)
        rows = torch.arange(len(at), device=at.device)[:, None]
        candidates, chosen = (normalize(view.hidden[rows, seen].float(), dim=-1) for seen in (view.physical, at))
        return chosen @ candidates.transpose(1, 2), torch.cat([visual_ok, words_ok], 1)

    def expected(self, kept: float, current: float) -> float:
        return kept


def _best(scores: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the `count` best of each row, best first [B, count or fewer], and which of them exist."""
    order = torch.argsort(ranks(scores, valid), dim=1)[:, :count]
    return order, valid.gather(1, order)
