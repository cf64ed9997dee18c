"""The definition, with the whole matrix: to be read, and to be right in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.blocks import BlockLists, Rule


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: BlockLists,
    rule: Rule,
    *,
    scaling: float,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax over the keys that the lists and the rule let through; cost B * H * Q * S numbers, several times."""
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    shared = query.shape[1] // key.shape[1]
    keys, values = (x.to(kind).repeat_interleave(shared, 1) for x in (key, value))
    logits = query.to(kind) @ keys.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    seen = lists.mask(query.shape[2], key.shape[2], rule)
    logits = logits.masked_fill(~seen, -torch.inf)
    # a row that sees nothing has no softmax: its output is 0
    weights = logits.softmax(-1).masked_fill(~seen.any(-1, keepdim=True), 0.0)
    output = (weights @ values).to(query.dtype)
    return (output, logits.logsumexp(-1)) if return_lse else output
