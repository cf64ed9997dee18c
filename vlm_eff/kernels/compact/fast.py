"""Keeping rows with what PyTorch has: whole rows are copied, never by an index for each of their numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def compact(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """The form `torch`, see `op.compact`."""
    return [_take(tensor, index) for tensor in tensors]


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [..., K] of [..., L, *rest]: as rows of one long list where the tensor is one in memory."""
    lead = index.dim() - 1
    groups, length = math.prod(index.shape[:-1]), tensor.shape[lead]
    if math.prod(tensor.shape[:lead]) == 1:
        rows = tensor.reshape(tensor.shape[lead:]).index_select(0, index.flatten())
    elif tensor.is_contiguous() and tensor.shape[:lead] == index.shape[:lead]:
        start = length * torch.arange(groups, device=index.device).view(*index.shape[:-1], 1)
        rows = tensor.view(groups * length, *tensor.shape[lead + 1 :]).index_select(0, (index + start).flatten())
    else:
        tensor = tensor.expand(*index.shape[:-1], *tensor.shape[lead:])
        axes = range(lead)
        own = [torch.arange(index.shape[d], device=index.device).view(_along(d, index.dim())) for d in axes]
        return tensor[(*own, index)]
    return rows.view(*index.shape, *tensor.shape[lead + 1 :])


def _along(axis: int, count: int) -> list[int]:
    return [-1 if d == axis else 1 for d in range(count)]
