"""What scores of keys are, written to be read: the whole matrix of attention, then its sums."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.logits import scaled_logits, soft_cap
from vlm_eff.kernels.window_scores.visible import Sight


def masked_logits(query: Tensor, key: Tensor, scaling: float, softcap: float | None, sight: Sight) -> Tensor:
    """Logits [B, H, R, S] in float32 (float64 stays), -inf where a row may not look."""
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    logits = soft_cap(scaled_logits(query.to(kind), key.to(kind), scaling), softcap)
    pairs = sight.pairs(query.shape[1], query.device)
    return logits if pairs is None else logits.masked_fill(~pairs, -torch.inf)


def window_lse(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    column: Tensor | None,
    first: Tensor | None,
    looks: Tensor | None,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    """See `op.window_lse`."""
    sight = Sight(query.shape[2], key.shape[2], causal, column, first, looks)
    return masked_logits(query, key, scaling, softcap, sight).logsumexp(-1)


def window_scores(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    column: Tensor | None,
    first: Tensor | None,
    looks: Tensor | None,
    weight: Tensor | None,
    lse: Tensor | None,
    softcap: float | None,
    causal: bool,
    reduce: str,
    grouped: bool,
) -> Tensor:
    """See `op.window_scores`."""
    sight = Sight(query.shape[2], key.shape[2], causal, column, first, looks)
    logits = masked_logits(query, key, scaling, softcap, sight)
    total = logits.logsumexp(-1) if lse is None else lse
    paid = (logits - total[..., None]).exp()
    # a row that sees nothing has no softmax, and pays nothing
    paid = paid.masked_fill(logits == -torch.inf, 0.0)
    if weight is not None:
        counts = weight.to(paid.dtype)[:, None, :, None]
        paid = torch.where(counts != 0, paid * counts, 0.0)
    got = paid.sum(2) if reduce == "sum" else paid.amax(2)
    if not grouped:
        return got
    by_head = got.unflatten(1, (key.shape[1], -1))
    return by_head.sum(2) if reduce == "sum" else by_head.amax(2)
