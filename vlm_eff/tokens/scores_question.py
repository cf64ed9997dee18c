"""Scores by what the question looks at: several query rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.plugin import Observation, QueryRows
from vlm_eff.models.rows import Rows
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class QuestionPeak:
    """Largest attention that any head of any token of the question pays, in the layer before (PruneVid).

    The question is the text after the last image or video; where nothing is after it, the last prompt token asks.
    """

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (QueryRows(layer - 1),)

    def __call__(self, view: View) -> Tensor:
        question, last = view.text("after"), view.prompt.last()
        alone = last.valid & ~question.valid.any(1, keepdim=True)
        rows = Rows(torch.cat([question.slot, last.slot], 1), torch.cat([question.valid, alone], 1))
        seen = view.attention(QueryRows(view.layer - 1), rows, "max")
        return torch.where(view.spans.valid, seen.weight.amax(1).gather(1, seen.columns), 0.0)
