"""Evicting entries of one modality alone: the others stay, and the budget is of what may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.cache import TEXT
from vlm_eff.core.config import part
from vlm_eff.importance.keep import check_choice
from vlm_eff.kvcache.budget import CacheBudget
from vlm_eff.kvcache.protect import Protect
from vlm_eff.models.kv.view import Entries

Modality = Literal["text", "visual"]
_SLACK = 1e-9


def is_of(entries: Entries, only: Modality) -> Tensor:
    """Present entries of a modality [B, Hkv, N]."""
    visual = entries.modality > TEXT
    return entries.present & (visual if only == "visual" else ~visual)


@part
@dataclass(frozen=True)
class OthersStay(Protect):
    """Everything that is not of the modality `only` stays, and of it the first and last tokens as in `Protect`."""

    only: Modality = "visual"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("only", self.only, ("text", "visual"))

    def mask(self, entries: Entries, count: Tensor) -> Tensor:
        return super().mask(entries, count) | (entries.present & ~is_of(entries, self.only))


@part
@dataclass(frozen=True)
class OfOneModality:
    """A share of heads: each keeps the others, and of the modality `only` what the budget says of its tokens seen.

    budget: a ratio or a count; bytes cannot be told apart by modality
    """

    only: Modality
    budget: CacheBudget

    def __call__(self, scores: Tensor, entries: Entries, protected: Tensor, count: Tensor) -> Tensor:
        mine = is_of(entries, self.only)
        seen = entries.seen_of(self.only == "visual")
        if self.budget.count is not None:
            stay = seen.clamp(max=self.budget.count)
        else:
            stay = torch.ceil(seen.double() * (self.budget.ratio or 0.0) - _SLACK).long()
        return (entries.present & ~mine).sum(2) + stay[:, None]
