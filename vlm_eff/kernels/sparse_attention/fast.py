"""Without a kernel: PyTorch's own attention under a mask that is made for one chunk of queries at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vlm_eff.kernels.blocks import BlockLists, Rule

# pairs of queries and keys that a chunk may hold: 16 MB of mask, 64 MB as numbers
PAIRS = 1 << 24
# shorter chunks waste less above the diagonal, longer ones cost fewer calls
CHUNK = 512


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
    """Dense attention under the mask, chunk by chunk; a causal rule spares the keys behind a chunk, the lists nothing.

    PyTorch's attention returns no log-sum-exp and knows no soft cap: with either, the logits of a chunk are computed in
    the open, in float32 (float64 for float64), which takes about twice as long.
    """
    batch, heads, rows, _ = query.shape
    shift = key.shape[2] - rows
    open_logits = return_lse or softcap is not None
    own = max([lists.batch, *(x.shape[0] for x in (rule.first, rule.text) if x is not None)])
    held = batch * heads if open_logits else own * lists.heads
    step = max(1, min(CHUNK, PAIRS // max(1, held * key.shape[2])))
    if open_logits:
        kind = torch.float64 if query.dtype == torch.float64 else torch.float32
        key, value = key.to(kind), value.to(kind)
    outputs, sums = [], []
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        last = shift + end if rule.causal else key.shape[2]
        seen = lists.mask(rows, key.shape[2], rule, begin=begin, end=end)[..., :last]
        part = (query[:, :, begin:end], key[:, :, :last], value[:, :, :last], seen, scaling)
        if open_logits:
            output, lse = _attend_openly(*part, softcap)
            sums.append(lse)
        else:
            output = _attend(*part)
        outputs.append(output)
    output = torch.cat(outputs, 2).to(query.dtype)
    return (output, torch.cat(sums, 2)) if return_lse else output


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    # what comes out of a row that sees nothing differs between PyTorch's backends
    return output.masked_fill(~seen.any(-1, keepdim=True), 0.0)


def _attend_openly(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, width = query.shape
    # the query heads that share a key head lie under one another: keys are never repeated
    packed = query.to(key.dtype).reshape(batch, key.shape[1], heads // key.shape[1] * rows, width)
    logits = (packed @ key.transpose(2, 3)).view(batch, heads, rows, key.shape[2]) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~seen, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = (logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    output = weights.view(*packed.shape[:3], key.shape[2]) @ value
    return output.view(batch, heads, rows, value.shape[3]), lse
