"""Attention with soft columns: what a method that drops by a learned threshold uses while it learns."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.action import Bias
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.visual import VisualSpans


def add_log_weight(action: Bias, spans: VisualSpans, before: Tensor | None, length: int) -> Tensor:
    """Log weight of every logical slot of the call [B, S]; that of earlier stages is added up, text has 0."""
    made = action.log_weight.new_zeros(spans.slot.shape[0], length + 1)
    target = torch.where(spans.valid, spans.slot, length)
    made = made.scatter_add(1, target, torch.where(spans.valid, action.log_weight, 0.0))[:, :length]
    return made if before is None else before + made


def soften(mask: Tensor | None, log_weight: Tensor, dtype: torch.dtype, ordered: bool, past: int) -> Tensor:
    """The mask [B, 1 or H, S, S] as numbers that are added, with `log_weight` [B, S] added to its columns.

    Raises:
        CapabilityError: tokens are cached already, or the mask is one that flash attention takes.
    """
    if past or (mask is not None and mask.dim() != 4):
        raise CapabilityError(
            explain(
                "soft dropping on a filled cache, or with flash attention",
                "training on whole prompts, with sdpa or eager attention",
                'Train on one forward call a prompt, with attn_implementation="sdpa"',
            )
        )
    if mask is None:
        size = log_weight.shape[1]
        mask = torch.ones(1, 1, size, size, dtype=torch.bool, device=log_weight.device)
        mask = mask.tril() if ordered else mask
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    own = torch.eye(log_weight.shape[1], dtype=torch.bool, device=mask.device)
    # a token always sees itself in full, as a dropped one does: nobody else reads what becomes of it
    return mask + torch.where(own, 0.0, log_weight[:, None, None, :]).to(mask.dtype)
