"""Scores from what the words of the question look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import LayerInput, Observation, QueryRows
from vlm_eff.importance.attention import raters
from vlm_eff.importance.keep import check_ratio
from vlm_eff.importance.select import from_mask
from vlm_eff.models.rows import Rows
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class RaterAttention:
    """Attention that the words which the image bears on pay to each candidate, mean over them and the heads.

    The raters are chosen once, at the first layer's input: words after the image whose share of the image tokens'
    similarity is above the words' mean; the last prompt token where no word is.
    heads: fraction of the heads that counts, those whose raters look at the image most
    """

    heads: float = 1.0

    def __post_init__(self) -> None:
        check_ratio("heads", self.heads)

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (QueryRows(layer - 1), LayerInput(0))

    def __call__(self, view: View) -> Tensor:
        rows = rating_rows(view)
        got = view.attention(QueryRows(view.layer - 1), rows)
        heads = got.weight.shape[1]
        paid = got.weight.gather(2, got.columns[:, None].expand(-1, heads, -1))
        paid = paid.masked_fill(~view.spans.valid[:, None], 0.0) / rows.count.clamp(min=1)[:, None, None]
        best = paid.sum(2).argsort(dim=1, descending=True, stable=True)[:, : math.ceil(self.heads * heads - 1e-9)]
        return paid.gather(1, best[:, :, None].expand(-1, -1, paid.shape[2])).mean(1)


@part
@dataclass(frozen=True)
class ReceivedAttention:
    """Half what the image pays to each candidate, half what the question pays, mean over heads (ATP-LLaVA's score).

    Both are means over the query rows that may look at the candidate, so that late tokens, which few image tokens come
    after, are not at a disadvantage. The question is the words after the image, or else the last prompt token.
    every: of the candidates every so manieth is asked, counted from the last one; 1 asks all
    """

    every: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(
                explain(f"every={self.every!r}", "a whole number of at least 1", "Give the distance of the asked ones")
            )

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (QueryRows(layer - 1),)

    def __call__(self, view: View) -> Tensor:
        left = view.candidates()
        from_last = left.count[:, None] - 1 - torch.arange(left.slot.shape[1], device=left.slot.device)
        asked = from_mask(left.valid & (from_last % self.every == 0))
        image = Rows(left.slot.gather(1, asked.index), asked.valid)
        return (self._paid(view, image) + self._paid(view, asking_rows(view))) / 2

    def _paid(self, view: View, rows: Rows) -> Tensor:
        paid, looks = view.attention(QueryRows(view.layer - 1), rows).to(view.candidates())
        return paid / looks.clamp(min=1)


def asking_rows(view: View) -> Rows:
    """The words after the image; the last prompt token of a row without any."""
    words, last = view.text(), view.prompt.last()
    nobody = ~words.valid.any(1, keepdim=True)
    return Rows(torch.cat([words.slot, last.slot], 1), torch.cat([words.valid, nobody], 1))


def rating_rows(view: View) -> Rows:
    """The raters of each row; needs `LayerInput(0)`."""
    wanted, words, last = LayerInput(0), view.text(), view.prompt.last()
    entered = view.prompt.candidates_at(0)
    chosen = raters(view.layer_input(wanted, entered), view.layer_input(wanted, words), entered.valid, words.valid)
    nobody = ~chosen.any(1, keepdim=True)
    return Rows(torch.cat([words.slot, last.slot], 1), torch.cat([chosen, nobody], 1))
