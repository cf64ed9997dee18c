"""Attention among chosen tokens with what PyTorch has: gather, attend, scatter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# rows that attend at a time where a mask has to be built; the keys behind them are left out then
CHUNK = 256


def selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None,
    *,
    scaling: float,
    first: Tensor | None,
    softcap: float | None,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The form `torch`, see `op.selected_attention`."""
    places = query.shape[2]
    older = key.shape[2] - places
    index = index if valid is None else index.masked_fill(~valid, 0)
    columns = index if not older else F.pad(older + index, (older, 0))
    if older:
        columns[:, :older] = torch.arange(older, device=index.device)
    short = take_rows(query, index), take_rows(key, columns), take_rows(value, columns)
    if not (older or softcap or return_lse) and index.shape[1] and valid is None and first is None:
        made = F.scaled_dot_product_attention(*short, is_causal=True, scale=scaling, enable_gqa=_shared(query, key))
        return put_rows(made, index, None, places)
    seen = None if first is None else columns >= first[:, None]
    if valid is not None:
        there = F.pad(valid, (older, 0), value=True)
        seen = there if seen is None else seen & there
    if softcap or return_lse:
        made, share = _weigh(*short, seen, scaling, softcap)
    else:
        made, share = _attend(*short, seen, scaling), None
    output = put_rows(made, index, valid, places)
    if share is None or not return_lse:
        return output
    return output, put_rows(share[..., None], index, valid, places, blank=-torch.inf)[..., 0]


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scaling: float) -> Tensor:
    """Rows in chunks over the keys up to the last of them, with a mask [B or 1, 1, rows, keys]."""
    made = []
    older = key.shape[2] - query.shape[2]
    for start in range(0, max(query.shape[2], 1), CHUNK):
        rows = query[:, :, start : start + CHUNK]
        stop = older + start + rows.shape[2]
        mask, blank = _mask(rows.shape[2], stop, seen, query.device)
        output = F.scaled_dot_product_attention(
            rows,
            key[:, :, :stop],
            value[:, :, :stop],
            attn_mask=mask,
            scale=scaling,
            enable_gqa=_shared(query, key),
        )
        made.append(output if blank is None else output.masked_fill(blank, 0.0))
    return torch.cat(made, 2)


def _mask(rows: int, stop: int, seen: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """What the last `rows` of `stop` tokens see, and which rows see nothing [B, 1, rows, 1]: these see themselves."""
    column = torch.arange(stop, device=device)
    own = column[stop - rows :, None]
    mask = (column <= own)[None, None]
    if seen is None:
        return mask, None
    mask = mask & seen[:, None, None, :stop]
    blank = ~(mask.any(-1, keepdim=True) & seen[:, None, stop - rows : stop, None])
    return mask | (blank & (column == own)), blank


def _weigh(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The same with the logarithm of the sum of exponentials, and with logits that have a cap."""
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, heads, rows, width = query.shape
    shared = key.shape[1]
    older = key.shape[2] - rows
    grouped = query.reshape(batch, shared, heads // shared, rows, width)
    outputs, shares = [], []
    for start in range(0, max(rows, 1), CHUNK):
        part = grouped[:, :, :, start : start + CHUNK].to(kind)
        count = part.shape[3]
        stop = older + start + count
        logits = part.flatten(2, 3) @ key[:, :, :stop].to(kind).transpose(2, 3) * scaling
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        mask, blank = _mask(count, stop, seen, query.device)
        logits = logits.view(*part.shape[:4], stop).masked_fill(~mask[:, :, None], -torch.inf)
        share = logits.logsumexp(-1)
        output = (logits - share[..., None]).exp().flatten(2, 3) @ value[:, :, :stop].to(kind)
        output = output.view(batch, heads, count, value.shape[3])
        share = share.view(batch, heads, count)
        if blank is not None:
            output, share = output.masked_fill(blank, 0.0), share.masked_fill(blank[..., 0], -torch.inf)
        outputs.append(output.to(query.dtype))
        shares.append(share)
    return torch.cat(outputs, 2), torch.cat(shares, 2)


def _shared(query: Tensor, key: Tensor) -> bool:
    return query.shape[1] != key.shape[1]


def take_rows(heads: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, K] of [B, H, L, D], for every head; one number of the index a row, not one an element."""
    if index.shape[0] == 1:
        return heads.index_select(2, index[0])
    return torch.stack([row.index_select(1, places) for row, places in zip(heads, index, strict=True)])


def put_rows(heads: Tensor, index: Tensor, valid: Tensor | None, places: int, blank: float = 0.0) -> Tensor:
    """Put [B, H, K, D] at the places `index` [B, K] of [B, H, places, D], everywhere else `blank`.

    The result is laid out as [B, places, H, D], which the projection behind an attention wants.
    """
    batch, count, kept, width = heads.shape
    target = index + places * torch.arange(batch, device=index.device)[:, None]
    if valid is not None:
        # fillers go to a spare row that is cut off again
        target = torch.where(valid, target, batch * places)
    made = heads.new_full((batch * places + 1, count * width), blank)
    made.index_copy_(0, target.flatten(), heads.transpose(1, 2).reshape(batch * kept, count * width))
    return made[: batch * places].view(batch, places, count, width).transpose(1, 2)
