"""What `best_partner` means, written down with the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def best_partner(
    source: Tensor,
    goal: Tensor,
    source_group: Tensor | None,
    goal_group: Tensor | None,
    apart: bool,
    slack: float,
) -> tuple[Tensor, Tensor]:
    """All similarities [N, A, G], those of pairs that may not be at -inf, and the first of the largest."""
    kind = torch.promote_types(source.dtype, torch.float32)
    smallest = torch.finfo(kind).tiny
    like = normalize(source.to(kind), dim=2, eps=smallest) @ normalize(goal.to(kind), dim=2, eps=smallest).mT
    may = torch.ones_like(like, dtype=torch.bool)
    if source_group is not None and goal_group is not None:
        may &= (source_group[:, :, None] == goal_group[:, None]) & (source_group[:, :, None] >= 0)
    if apart:
        may &= ~torch.eye(source.shape[1], dtype=torch.bool, device=source.device)
    like = like.masked_fill(~may, -torch.inf)
    if goal.shape[1] == 0:
        nobody = like.new_full(like.shape[:2], -torch.inf)
        return nobody, torch.zeros_like(nobody, dtype=torch.long)
    best = like.amax(2)
    return best, (like >= (best - slack)[:, :, None]).to(torch.uint8).argmax(2)
