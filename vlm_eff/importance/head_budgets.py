"""How many entries each key head of a layer keeps, from the scores of all of them together."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.allocate import apportion
from vlm_eff.importance.select import top_k


def head_counts(
    scores: Tensor, present: Tensor, base: int | Tensor, floor: float = 0.2, total: Tensor | None = None
) -> Tensor:
    """Entries that each key head keeps [B, Hkv] int64: as many as it has among the best of all heads (AdaKV).

    scores: [B, Hkv, S]; present: [B, S] or [B, Hkv, S] candidates; base: entries of a head on average, a number or [B];
        floor: fraction [0, 1] of the budget that is shared equally; total: [B] entries of all heads together where that
        is no multiple of the heads, in place of `base`
    The best Hkv * base entries of the layer are counted head by head, then mixed with equal shares:
    (1 - floor) * count + floor * base, rounded by largest remainder, so that the sum is Hkv * base exactly (or all that
    exist). Ties go to the lower position, then to the lower head, so that equal heads get equal shares.
    Source: AdaKV, arXiv:2407.11550; floor as in the official code, which rounds each head alone and may miss the sum.
    """
    if not 0 <= floor <= 1:
        raise ConfigError(explain(f"floor={floor!r}", "a fraction from 0 to 1", "Give the equal part, such as 0.2"))
    batch, heads, width = scores.shape
    there = (present if present.dim() == 3 else present[:, None]).expand(scores.shape)
    exist = there.sum(2)
    whole = torch.as_tensor(base, device=scores.device).expand(batch) * heads if total is None else total
    mean = whole.clamp(min=0).double() / heads
    total = torch.minimum(whole.clamp(min=0), exist.sum(1))
    # position by position, so that of equal scores no head is served before its neighbours
    best = top_k(scores.transpose(1, 2).flatten(1), total, there.transpose(1, 2).flatten(1))
    count = best.view(batch, width, heads).sum(1)
    quota = (1 - floor) * count.double() + floor * mean[:, None]
    return apportion(quota, total, 0, exist)
