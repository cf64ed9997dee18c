"""The attention mask of a layer whose heads store different entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.registers import hide_registers
from vlm_eff.models.token_map import TokenMap, gather_slots


@dataclass(frozen=True)
class Wanted:
    """What a layer's attention needs of its mask.

    heads, dtype: of the query         past, length: logical lengths before and of this call
    ragged:       some key is a filler; kept on the host, so that no step asks the device
    flash:        flash attention will take the mask: columns alone, and it sees to causality itself
    """

    heads: int
    dtype: torch.dtype
    past: int
    length: int
    ragged: bool
    flash: bool = False


def mask_of_heads(
    mask: Tensor | None, keys: Tensor, weight: Tensor | None, queries: TokenMap | None, wanted: Wanted
) -> Tensor | None:
    """Translate the mask that the model made for full length to the entries of each head.

    mask:    [B, 1 or H, Q, S] bool or float, [B, S] as flash attention takes it, or None
    keys:    [B, Hkv, K] logical position of every key the layer will see, -1 for fillers
    weight:  [B, Hkv, K] tokens that a key stands for, or None; its logarithm is added to the logits
    queries: survivors of this call, or None when none was dropped
    Returns [B, H, Q, K], or None where nothing has to be hidden.
    """
    there = keys >= 0
    if wanted.flash:
        return _for_flash(mask, keys, there, weight, wanted)
    if mask is not None and mask.dim() == 2:
        seen = gather_slots(mask[:, None].expand(-1, keys.shape[1], -1).flatten(0, 1), _index(keys).flatten(0, 1), 1)
        made = _causal(keys, there & seen.view_as(keys).bool(), queries, wanted)
    elif mask is not None:
        made = _gathered(mask, keys, there, queries)
    elif wanted.length > 1 or wanted.ragged:
        made = _causal(keys, there, queries, wanted)
    elif weight is None:
        return None
    else:
        made = there[:, :, None]
    if queries is not None:
        made = hide_registers(made, queries)
    made = made.repeat_interleave(wanted.heads // made.shape[1], 1)
    if weight is None:
        return made
    share = weight.clamp(min=1).log()[:, :, None].repeat_interleave(wanted.heads // weight.shape[1], 1)
    if made.dtype == torch.bool:
        made = torch.zeros_like(made, dtype=wanted.dtype).masked_fill(~made, torch.finfo(wanted.dtype).min)
    return made + share.to(made.dtype)


def _gathered(mask: Tensor, keys: Tensor, there: Tensor, queries: TokenMap | None) -> Tensor:
    batch, heads, _ = keys.shape
    if queries is not None:
        mask = gather_slots(mask, queries.rows, 2)
    if mask.shape[1] not in (1, heads):
        # a mask by query head: each looks at its own key head's entries
        spread = mask.shape[1] // heads
        keys, there, heads = keys.repeat_interleave(spread, 1), there.repeat_interleave(spread, 1), mask.shape[1]
    wide = mask.expand(batch, heads, -1, -1)
    at = _index(keys)[:, :, None].expand(-1, -1, wide.shape[2], -1)
    picked = wide.gather(3, at)
    hidden = ~there[:, :, None]
    if picked.dtype == torch.bool:
        return picked & ~hidden
    return picked.masked_fill(hidden, torch.finfo(picked.dtype).min)


def _causal(keys: Tensor, there: Tensor, queries: TokenMap | None, wanted: Wanted) -> Tensor:
    if queries is None:
        rows = wanted.past + torch.arange(wanted.length, device=keys.device).expand(len(keys), -1)
    else:
        rows = wanted.past + queries.rows
    looks = (keys[:, :, None] <= rows[:, None, :, None]) & there[:, :, None]
    # a filler row sees nothing: let it see itself, so that its softmax is defined; nobody reads the result
    blank = ~looks.any(-1, keepdim=True)
    return looks | (blank & (keys[:, :, None] == rows[:, None, :, None]))


def _index(keys: Tensor) -> Tensor:
    return keys.clamp(min=0).long()


def _for_flash(
    mask: Tensor | None, keys: Tensor, there: Tensor, weight: Tensor | None, wanted: Wanted
) -> Tensor | None:
    """A mask of columns alone [B, K], or None: all heads must store the same, and every entry counts once."""
    if weight is not None:
        raise CapabilityError(
            explain(
                "merged entries that count for several, under flash attention, which adds nothing to its logits",
                "attention through sdpa or eager",
                'Load the model with attn_implementation="sdpa"',
            )
        )
    if mask is None and not wanted.ragged:
        return None
    if not bool((keys == keys[:, :1]).all()):
        raise CapabilityError(
            explain(
                "padding or fillers under flash attention, with heads that store different entries",
                "one kept set for all heads, or attention through sdpa or eager",
                'Load the model with attn_implementation="sdpa", or choose per_head=False',
            )
        )
    if mask is None:
        return there[:, 0].long()
    return mask.gather(1, _index(keys[:, 0])) * there[:, 0].to(mask.dtype)
