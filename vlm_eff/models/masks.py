"""Attention masks from logical to physical positions: the columns a layer stores, the rows that are still present."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.registers import hide_registers
from vlm_eff.models.token_map import TokenMap, gather_slots

# rows of a mask that are compared at a time
_ROWS = 512


def map_mask(
    mask: Tensor | None, keys: Tensor, valid: Tensor | None, queries: TokenMap | None, total: int, length: int
) -> Tensor | None:
    """Translate the mask that the model made for full length.

    mask:    [B, 1 or H, Q, S] bool (True attends) or float (added), [B, S] as flash attention takes it, or None
    keys:    [B, K] logical position of every key the layer will see; valid: [B, K] or None when there is no filler
    queries: survivors of this call, or None when none was dropped
    total:   logical length after this call, the position behind the mask's last column
    length:  logical queries of this call
    None stays None when no filler has to be hidden: kept order is ascending, so causal stays causal.
    """
    if mask is None:
        return _explicit(keys, valid, queries, total - length, length)
    if not isinstance(mask, Tensor):
        raise CapabilityError(
            explain(
                f"an attention mask of type {type(mask).__name__}",
                "eager, sdpa and flash attention masks",
                'Load the model with attn_implementation="sdpa"',
            )
        )
    # a sliding layer's mask does not begin at position 0
    columns = keys - (total - mask.shape[-1])
    seen = columns >= 0 if valid is None else (columns >= 0) & valid
    columns = columns.clamp(min=0)
    if mask.dim() == 2:
        return gather_slots(mask, columns, 1) * seen.to(mask.dtype)
    if queries is not None:
        mask = gather_slots(mask, queries.rows, 2)
    mask = gather_slots(mask, columns, 3)
    seen = seen[:, None, None, :]
    mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    return mask if queries is None else hide_registers(mask, queries)


def _explicit(keys: Tensor, valid: Tensor | None, queries: TokenMap | None, past: int, length: int) -> Tensor | None:
    """The boolean causal mask that a None mask stands for, where it can no longer stay None."""
    if valid is None and (past == 0 or length == 1):
        return None
    rows = past + (
        queries.rows if queries is not None else torch.arange(length, device=keys.device).expand(keys.shape[0], -1)
    )
    mask = keys[:, None, :] <= rows[:, :, None]
    if valid is not None:
        mask = mask & valid[:, None, :]
    # a filler row sees nothing: let it see itself, so that its softmax is defined; nobody reads the result
    blank = ~mask.any(-1, keepdim=True)
    made = (mask | (blank & (keys[:, None, :] == rows[:, :, None])))[:, None]
    return made if queries is None else hide_registers(made, queries)


def plain_first(mask: Tensor, real: Tensor) -> Tensor | None:
    """First key [B] that the real rows of a mask see, if each sees all keys from there to its own and no other.

    mask: [B or 1, 1, N, K] bool (True attends) or float (added), of which the last N keys belong to the N queries
    real: [B, N] which queries count; what the others see is not looked at
    None for a mask that says anything else (a window, images that look ahead, weights, heads of their own). Asks the
    device once; compares rows in chunks, so that nothing of the size of the mask is made.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] != real.shape[1]:
        return None
    mask = mask[:, 0].expand(real.shape[0], -1, -1)
    rows, keys = mask.shape[1:]
    column = torch.arange(keys, device=mask.device)
    own = column[keys - rows :]
    # the last real row sees the most
    last = (real * torch.arange(1, rows + 1, device=mask.device)).argmax(1)
    widest = mask[torch.arange(len(mask), device=mask.device), last]
    first = (_sees(widest).to(torch.int8)).argmax(1)
    plain = torch.ones((), dtype=torch.bool, device=mask.device)
    for start in range(0, rows, _ROWS):
        part = mask[:, start : start + _ROWS]
        want = (column <= own[start : start + _ROWS, None]) & (column >= first[:, None, None])
        fits = (_sees(part) == want) & (_sees(part) | _hides(part))
        plain = plain & (fits | ~real[:, start : start + _ROWS, None]).all()
    return first if bool(plain) else None


def _sees(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def _hides(mask: Tensor) -> Tensor:
    return ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
