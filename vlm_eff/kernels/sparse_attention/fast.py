"""Without a kernel: PyTorch's own attention under a mask that is made for one chunk of queries at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vlm_eff.kernels.blocks import BlockLists, Rule

# pairs of queries and keys that a chunk may hold: 16 MB of mask, 64 MB as numbers
PAIRS = 1 << 24
# queries of a chunk: shorter ones see fewer keys together, longer ones cost fewer calls
CHUNK = 128
# of its keys a chunk has to see less than this share for it to pay to copy them
WORTH = 0.8
# PyTorch's attention on a CPU, which keeps its log-sum-exp to itself; not a public function, so it may go away
_FLASH_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


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
    """Dense attention under the mask, chunk by chunk, over the keys that somebody in the chunk may see.

    A causal rule spares the keys behind a chunk. On a CPU the keys are gathered that any head and row of the batch sees
    there: lists that all share save in proportion, those of heads apart hardly anything. Elsewhere, and while traced,
    finding them would stop the device or break the graph, and the lists spare nothing.

    PyTorch's attention knows no soft cap, and a log-sum-exp only on a CPU: otherwise the logits of a chunk are computed
    in the open, in float32 (float64 for float64), which takes about three times as long.
    """
    batch, heads, rows, _ = query.shape
    shift = key.shape[2] - rows
    told = _FLASH_CPU is not None and query.device.type == "cpu"
    open_logits = softcap is not None or (return_lse and not told)
    own = max([lists.batch, *(x.shape[0] for x in (rule.first, rule.text) if x is not None)])
    held = batch * heads if open_logits else own * lists.heads
    step = max(1, min(CHUNK, PAIRS // max(1, held * key.shape[2])))
    if open_logits:
        kind = torch.float64 if query.dtype == torch.float64 else torch.float32
        key, value = key.to(kind), value.to(kind)
    outputs: list[Tensor] = []
    sums: list[Tensor | None] = []
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        last = shift + end if rule.causal else key.shape[2]
        keys = _listed(lists, key.shape[2], last, begin, end)
        if keys is None:
            keys, chosen = torch.arange(last, device=key.device), (key[:, :, :last], value[:, :, :last])
        else:
            chosen = (key.index_select(2, keys), value.index_select(2, keys))
        seen = lists.mask(rows, key.shape[2], rule, begin=begin, end=end, keys=keys)
        part = (query[:, :, begin:end], *chosen, seen, scaling)
        if open_logits:
            output, lse = _attend_openly(*part, softcap)
        elif return_lse:
            output, lse = _attend_and_tell(*part)
        else:
            output, lse = _attend(*part), None
        outputs.append(output)
        sums.append(lse)
    output = torch.cat(outputs, 2).to(query.dtype)
    return (output, torch.cat([lse for lse in sums if lse is not None], 2)) if return_lse else output


def _listed(lists: BlockLists, key_length: int, last: int, begin: int, end: int) -> Tensor | None:
    """The keys before `last` that are listed for a chunk; None where they are nearly all, or looking costs a stop."""
    if lists.full_count.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    keys = lists.keys(key_length, begin, end)[:last].nonzero()[:, 0]
    return keys if 0 < keys.numel() < WORTH * last else None


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    # what comes out of a row that sees nothing differs between PyTorch's backends
    return output.masked_fill(~seen.any(-1, keepdim=True), 0.0)


def _attend_and_tell(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    assert _FLASH_CPU is not None
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    hidden = torch.zeros(seen.shape, dtype=query.dtype, device=seen.device).masked_fill(~seen, -torch.inf)
    output, lse = _FLASH_CPU(query, key, value, attn_mask=hidden, scale=scaling)
    empty = ~seen.any(-1)
    return output.masked_fill(empty[..., None], 0.0), lse.masked_fill(empty, -torch.inf)


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
