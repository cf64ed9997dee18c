"""Rows of attention inside a block of the vision tower, reduced where they are made: never the N x N matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 256


def reduce_attention(query: Tensor, key: Tensor, mask: Any, scaling: float, row: str, heads: str) -> Tensor:
    """One number for each key [b, N] float32: what the first query pays it ("cls"), or what it receives on average.

    query, key: [b, H, N, Dh]; heads: "mean" of the heads' weights, or "joined" into one head of their whole width
    """
    if heads == "joined":
        query, key = join_heads(query)[:, None], join_heads(key)[:, None]
        scaling = query.shape[-1] ** -0.5
    if row == "cls":
        return _weights(query[:, :, :1], key, _mask_rows(mask, 0, 1), scaling)[:, :, 0].mean(1)
    return _received(query, key, mask, scaling)


def reduce_keys(key: Tensor, heads: str) -> Tensor:
    """Keys [b, H, N, Dh] to [b, N, Dh] ("mean") or [b, N, H * Dh] ("joined"), float32."""
    return key.float().mean(1) if heads == "mean" else join_heads(key).float()


def join_heads(states: Tensor) -> Tensor:
    """[b, H, N, Dh] to [b, N, H * Dh]."""
    return states.transpose(1, 2).flatten(2)


def _received(query: Tensor, key: Tensor, mask: Any, scaling: float) -> Tensor:
    """Mean over the queries that may look at a key: images that share a sequence do not dilute one another."""
    total = query.new_zeros(query.shape[0], key.shape[2], dtype=torch.float32)
    lookers = torch.zeros_like(total)
    for start in range(0, query.shape[2], _CHUNK):
        part = query[:, :, start : start + _CHUNK]
        rows = _mask_rows(mask, start, part.shape[2])
        total += _weights(part, key, rows, scaling).mean(1).sum(1)
        lookers += part.shape[2] if rows is None else _looking(rows, part.shape[2])
    return total / lookers.clamp(min=1)


def _looking(rows: Tensor, queries: int) -> Tensor:
    """How many queries may look at each key [b, N]."""
    seen = rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
    return seen.float().mean(1).mean(1) * queries


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    logits = (query.float() @ key.float().transpose(2, 3)) * scaling
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1)


def _mask_rows(mask: Any, start: int, count: int) -> Tensor | None:
    if not isinstance(mask, Tensor):
        return None
    return mask if mask.shape[2] == 1 else mask[:, :, start : start + count]
