"""What `merge_tokens` and `sum_into` mean, as a product with a matrix of who goes where."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_tokens(hidden: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums by size over sums of sizes."""
    size = torch.ones(into.shape, device=into.device) if size is None else size
    kind = torch.promote_types(hidden.dtype, size.dtype)
    members = _members(into, count).to(kind) * size.to(kind)[:, None]
    total = members.sum(2)
    share = torch.where(total[:, :, None] > 0, members / total[:, :, None], 0.0)
    return (share @ hidden.to(kind)).to(hidden.dtype), total.to(size.dtype)


def sum_into(x: Tensor, into: Tensor, count: int, weight: Tensor | None) -> Tensor:
    """Sums by weight."""
    kind = torch.promote_types(x.dtype, torch.float32)
    members = _members(into, count).to(kind)
    if weight is not None:
        members = members * weight.to(kind)[:, None]
    return (members @ x.to(kind)).to(x.dtype)


def _members(into: Tensor, count: int) -> Tensor:
    """Which token goes into which place [N, count, T]."""
    return into[:, None] == torch.arange(count, device=into.device)[:, None]
