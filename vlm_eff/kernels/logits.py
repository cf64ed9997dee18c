"""Logits of attention in plain torch: scaled products in float32, softly capped."""

from __future__ import annotations

from torch import Tensor


def scaled_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Scaled logits [B, H, R, S] of queries [B, H, R, Dh] over grouped keys [B, Hkv, S, Dh], in the type of both.

    Keys are never repeated for the query heads that share them. Give float32 or more: a product rounded to half
    precision before it is scaled overflows.
    """
    batch, heads, rows, width = query.shape
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1] * rows, width)
    return (grouped @ key.transpose(2, 3)).reshape(batch, heads, rows, -1) * scaling


def soft_cap(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap), or the logits where there is none."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()
