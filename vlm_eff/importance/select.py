"""Scores to selections: which candidates a row keeps. Kept order is ascending; ties go to the lower index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """Kept candidates.

    index: [B, K] columns, ascending in each row among the valid ones
    valid: [B, K] False where a row keeps fewer than K
    """

    index: Tensor
    valid: Tensor

    @property
    def count(self) -> Tensor:
        """Kept candidates of each row [B]."""
        return self.valid.sum(1)

    def mask(self, candidates: int) -> Tensor:
        """The selection as a mask [B, V] over `candidates` columns."""
        made = torch.zeros(self.index.shape[0], candidates + 1, dtype=torch.bool, device=self.index.device)
        made.scatter_(1, torch.where(self.valid, self.index, candidates), True)
        return made[:, :candidates]


def from_mask(keep: Tensor) -> Selection:
    """Selection of the True columns of `keep` [B, V]; K is the largest count of a row."""
    count = keep.sum(1)
    width = int(count.max()) if keep.numel() else 0
    # a stable sort of "not kept" brings the kept columns to the front in ascending order
    index = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, :width]
    valid = torch.arange(width, device=keep.device) < count[:, None]
    return Selection(index, valid)


def top_k(scores: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Mask [B, V] of the `count` [B] highest `scores` [B, V] among `valid` [B, V]; ties go to the lower index."""
    return ranks(scores, valid) < count[:, None]


def ranks(scores: Tensor, valid: Tensor) -> Tensor:
    """Rank of each candidate [B, V] int64: 0 is the best; invalid candidates come last; ties go to the lower index."""
    masked = scores.float().masked_fill(~valid, float("-inf"))
    order = torch.argsort(masked, dim=1, descending=True, stable=True)
    # an invalid candidate must lose even against a valid one that scores -inf
    order = order.gather(1, torch.argsort((~valid).gather(1, order).to(torch.int8), dim=1, stable=True))
    positions = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions)


def top_k_per_group(scores: Tensor, group: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Mask [B, V] of the best candidates of each group.

    group: [B, V] group number of each candidate, counted from 0 in each row; count: [B, G] how many each group keeps.
    """
    rank = ranks(scores, valid)
    width = scores.shape[1]
    # rank inside the group = how many of the same group rank before: sort by (group, rank), subtract the group's start
    named = torch.where(valid, group, count.shape[1])
    key = named * (width + 1) + rank
    order = torch.argsort(key, dim=1, stable=True)
    sorted_group = named.gather(1, order)
    place = torch.arange(width, device=scores.device).expand_as(order)
    is_start = torch.ones_like(sorted_group, dtype=torch.bool)
    is_start[:, 1:] = sorted_group[:, 1:] != sorted_group[:, :-1]
    start = torch.cummax(torch.where(is_start, place, 0), dim=1).values
    inside = torch.empty_like(order).scatter_(1, order, place - start)
    limit = torch.cat([count, count.new_zeros(count.shape[0], 1)], 1).gather(
        1, torch.where(valid, group, count.shape[1])
    )
    return (inside < limit) & valid
