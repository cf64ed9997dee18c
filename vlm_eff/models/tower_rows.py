"""Rows of attention inside a block of the vision tower, reduced where they are made: never the N x N matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_eff.kernels.column_scores import column_scores
from vlm_eff.kernels.logits import scaled_logits
from vlm_eff.kernels.window_scores import Sight, visible_rows, window_scores

_CHUNK = 256


def reduce_attention(query: Tensor, key: Tensor, mask: Any, scaling: float, row: str, heads: str) -> Tensor:
    """One number for each key [b, N] float32: what the first query pays it ("cls"), or what it receives on average.

    query, key: [b, H, N, Dh]; heads: "mean" of the heads' weights, or "joined" into one head of their whole width
    """
    if heads == "joined":
        query, key = join_heads(query)[:, None], join_heads(key)[:, None]
        scaling = query.shape[-1] ** -0.5
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        # an added mask may hold more than what it hides
        if row == "cls":
            return _weights(query[:, :, :1], key, _mask_rows(mask, 0, 1), scaling)[:, :, 0].mean(1)
        return _received(query, key, mask, scaling)
    looks = mask.expand(query.shape[0], *mask.shape[1:]) if isinstance(mask, Tensor) else None
    if row == "cls":
        looks = None if looks is None else looks[:, :, :1]
        return _paid(window_scores, query[:, :, :1], key, looks, scaling)
    sight = Sight(query.shape[2], key.shape[2], False, None, None, looks)
    lookers = visible_rows(sight, None, query.shape[0], query.device).mean(1)
    # images that share a sequence do not dilute one another
    return _paid(column_scores, query, key, looks, scaling) / lookers.clamp(min=1)


def _paid(operation: Any, query: Tensor, key: Tensor, looks: Tensor | None, scaling: float) -> Tensor:
    made: Tensor = operation(query, key, scaling=scaling, causal=False, looks=looks, grouped=False)
    return made.float().mean(1)


def reduce_keys(key: Tensor, heads: str) -> Tensor:
    """Keys [b, H, N, Dh] to [b, N, Dh] ("mean") or [b, N, H * Dh] ("joined"), float32."""
    return key.float().mean(1) if heads == "mean" else join_heads(key).float()


def join_heads(states: Tensor) -> Tensor:
    """[b, H, N, Dh] to [b, N, H * Dh]."""
    return states.transpose(1, 2).flatten(2)


def _received(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Mean over the queries that may look at a key, with a mask that is added."""
    total = query.new_zeros(query.shape[0], key.shape[2], dtype=torch.float32)
    lookers = torch.zeros_like(total)
    for start in range(0, query.shape[2], _CHUNK):
        part = query[:, :, start : start + _CHUNK]
        rows = _mask_rows(mask, start, part.shape[2])
        total += _weights(part, key, rows, scaling).mean(1).sum(1)
        lookers += _looking(rows, part.shape[2])
    return total / lookers.clamp(min=1)


def _looking(rows: Tensor, queries: int) -> Tensor:
    """How many queries may look at each key [b, N]."""
    return (rows > torch.finfo(rows.dtype).min / 2).float().mean(1).mean(1) * queries


def _weights(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return (scaled_logits(query.float(), key.float(), scaling) + mask.float()).softmax(-1)


def _mask_rows(mask: Tensor, start: int, count: int) -> Tensor:
    return mask if mask.shape[2] == 1 else mask[:, :, start : start + count]
