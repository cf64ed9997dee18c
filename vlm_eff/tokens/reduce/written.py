"""Tokens that stay, with new contents for some of them, as one action."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_eff.core.action import Merge
from vlm_eff.importance.select import from_mask
from vlm_eff.models.view import View


@dataclass
class Contents:
    """Hidden states and weights of all candidates while a reduction rewrites them.

    keep:   [B, V] which candidates stay
    hidden: [B, V, D] their states in float32, or float64 where the model computes in it
    weight: [B, V] original tokens that each stands for
    """

    keep: Tensor
    hidden: Tensor
    weight: Tensor
    changed: bool = field(default=False)

    @classmethod
    def of(cls, view: View, keep: Tensor) -> Contents:
        """What is there before anything is rewritten; `keep` [B, V] is copied."""
        hidden = view.visual_hidden()
        # every state of a lower precision has its place in the wider one, so untouched ones come back bit for bit
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return cls(keep.clone(), wide, wide.new_ones(keep.shape))

    def write(self, row: int, columns: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Keep candidates `columns` [N] of a row with contents `hidden` [N, D] that stand for `weight` [N] tokens."""
        if not self.changed:
            self.hidden, self.changed = self.hidden.clone(), True
        self.keep[row, columns] = True
        self.hidden[row, columns] = hidden.to(self.hidden.dtype)
        self.weight[row, columns] = weight.to(self.weight.dtype)

    def merge(self) -> Merge:
        """The action."""
        kept = from_mask(self.keep)
        wide = kept.index[:, :, None].expand(-1, -1, self.hidden.shape[2])
        return Merge(kept.index, kept.valid, self.hidden.gather(1, wide), self.weight.gather(1, kept.index))
