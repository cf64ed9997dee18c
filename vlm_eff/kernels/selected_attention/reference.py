"""What attention among chosen tokens means: masked attention, with the whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """The form `reference`, see `op.selected_attention`: every token takes part, and a mask hides what does not."""
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, heads, rows, _ = query.shape
    older = key.shape[2] - rows
    chosen = torch.zeros(batch, rows, dtype=torch.bool, device=query.device)
    for row in range(batch):
        places = index[row] if valid is None else index[row][valid[row]]
        chosen[row, places] = True
    takes_part = torch.cat([chosen.new_ones(batch, older), chosen], 1)
    place = torch.arange(key.shape[2], device=query.device)
    if first is not None:
        takes_part = takes_part & (place >= first[:, None])
    causal = place <= place[older:, None]
    mask = takes_part[:, older:, None] & takes_part[:, None, :] & causal
    spread = heads // key.shape[1]
    key, value = (part.to(kind).repeat_interleave(spread, 1) for part in (key, value))
    logits = query.to(kind) @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~mask[:, None], -torch.inf)
    share = logits.logsumexp(-1)
    weight = (logits - share.masked_fill(share == -torch.inf, 0.0)[..., None]).exp()
    # what nobody sees may hold anything, NaN too
    output = weight @ value.masked_fill(~takes_part[:, None, :, None], 0.0)
    return (output.to(query.dtype), share) if return_lse else output.to(query.dtype)
