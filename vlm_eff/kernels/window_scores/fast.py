"""Scores of keys in plain torch, some rows at a time: exact, without a matrix of all rows and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.logits import scaled_logits, soft_cap
from vlm_eff.kernels.window_scores.visible import Sight

# logits held at a time, in numbers: 64 MiB of float32
CHUNK = 1 << 24
# rows at a time at most: a chunk of causal rows needs no more keys than its last row sees
STEP = 256


def rows_at_once(batch: int, heads: int, keys: int) -> int:
    """How many rows of logits may be held at a time."""
    return max(1, CHUNK // max(batch * heads * keys, 1))


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
    query, key = _real(query), _real(key)
    step = rows_at_once(query.shape[0], query.shape[1], key.shape[2])
    made = [
        _chunk(query, key, scaling, softcap, sight, start, min(start + step, sight.rows))[0].logsumexp(-1)
        for start in range(0, sight.rows, step)
    ]
    return made[0] if len(made) == 1 else torch.cat(made, 2)


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
    query, key = _real(query), _real(key)
    got = query.new_zeros(query.shape[0], query.shape[1], sight.keys)
    step = min(rows_at_once(query.shape[0], query.shape[1], sight.keys), STEP)
    for start in range(0, sight.rows, step):
        end = min(start + step, sight.rows)
        logits, pairs = _chunk(query, key, scaling, softcap, sight, start, end)
        paid = logits.softmax(-1) if lse is None else (logits - lse[:, :, start:end, None]).exp()
        if pairs is not None:
            # a row that sees nothing has no softmax, and pays nothing
            paid = paid.masked_fill(~pairs, 0.0)
        if weight is not None:
            counts = weight[:, None, start:end, None]
            paid = (paid * counts).masked_fill(counts == 0, 0.0)
        some = paid.sum(2) if reduce == "sum" else paid.amax(2)
        if some.shape[2] < sight.keys:
            some = torch.nn.functional.pad(some, (0, sight.keys - some.shape[2]))
        got = got + some if reduce == "sum" else torch.maximum(got, some)
    if not grouped:
        return got
    by_head = got.unflatten(1, (key.shape[1], -1))
    return by_head.sum(2) if reduce == "sum" else by_head.amax(2)


def _chunk(
    query: Tensor, key: Tensor, scaling: float, softcap: float | None, sight: Sight, start: int, end: int
) -> tuple[Tensor, Tensor | None]:
    """Masked logits of some rows over the keys that any of them may see, and which pairs these are."""
    part = sight.part(start, end)
    used = sight.keys
    if sight.causal and sight.column is None:
        used += end - sight.rows
        looks = None if part.looks is None else part.looks[..., :used]
        part = Sight(part.rows, used, True, part.column, part.first, looks)
    logits = soft_cap(scaled_logits(query[:, :, start:end], key[:, :, :used], scaling), softcap)
    pairs = part.pairs(query.shape[1], query.device)
    return (logits if pairs is None else logits.masked_fill(~pairs, -torch.inf)), pairs


def _real(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
