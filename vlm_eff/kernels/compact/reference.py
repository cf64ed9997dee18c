"""What keeping rows means: pick them one row of the batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def compact(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """The form `reference`, see `op.compact`."""
    return [_pick(tensor.expand(*index.shape[:-1], *tensor.shape[index.dim() - 1 :]), index) for tensor in tensors]


def _pick(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [..., K] of a tensor [..., L, *rest]."""
    if index.dim() == 1:
        return tensor[index]
    return torch.stack([_pick(rows, places) for rows, places in zip(tensor, index, strict=True)])
