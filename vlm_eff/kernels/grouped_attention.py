"""Attention over entries that lie in several groups of different form, one group at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Group = tuple[Tensor, Tensor, Tensor | None]


def attend_groups(
    query: Tensor, groups: Iterable[Group], scaling: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attend to each group in float32 and merge: exactly the softmax over all groups together.

    query: [B, H, Q, Dh]; groups: (key [B, Hkv, P, Dh], value [B, Hkv, P, Dh], bias) each, where bias
    [B, 1 | Hkv | H, 1 | Q, P] is added to the scaled logits (-inf hides an entry, log m makes it count m times), or
    None; scaling: factor of the logits; softcap: logits become softcap * tanh(logits / softcap) before the bias.

    Returns the output [B, H, Q, Dh] in the type of the query, and the natural logarithm of the sum of exponentials
    [B, H, Q] in float32 (float64 for a float64 query). A row that sees nothing gets zeros and -inf. The groups may be
    a generator that reads each one only when it is asked for: no group outlives its turn, so that the peak is the
    largest of them. Kernels that return base-2 logarithms must be multiplied by ln 2 before they are mixed in.
    Keys and values are never repeated for the query heads that share them.
    """
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    output = torch.zeros_like(query, dtype=kind)
    total = output.new_full(query.shape[:3], -torch.inf)
    for key, value, bias in groups:
        logits = _logits(query.to(kind), key.to(kind), scaling, softcap)
        if bias is not None:
            logits = logits + _by_group(bias.to(kind), logits)
        there, share = _softmax(logits, value.to(kind), query.shape)
        output, total = merge(output, total, there, share)
        del logits, there, share
        # a name left behind would keep this group alive while the next one is read
        del key, value, bias
    return output.to(query.dtype), total


def merge(output: Tensor, total: Tensor, other: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
    """Join attention over two sets of entries, given each one's output [..., Dh] and log-sum-exp [...].

    o = (e^l1 o1 + e^l2 o2) / (e^l1 + e^l2); a set of which nothing is seen (-inf) adds nothing.
    """
    both = torch.logaddexp(total, other_total)
    base = both.masked_fill(both == -torch.inf, 0.0)
    first, second = ((part - base).exp()[..., None] for part in (total, other_total))
    return first * output + second * other, both


def _logits(query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Scaled logits [B, Hkv, n, Q, P], where n query heads share a key head."""
    batch, heads, rows, width = query.shape
    shared = query.reshape(batch, key.shape[1], heads // key.shape[1] * rows, width)
    logits = (shared @ key.transpose(2, 3)) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.view(batch, key.shape[1], heads // key.shape[1], rows, key.shape[2])


def _by_group(bias: Tensor, logits: Tensor) -> Tensor:
    """A bias [B, 1 | Hkv | H, 1 | Q, P] in the shape of the logits [B, Hkv, n, Q, P], as a view."""
    shared, n = logits.shape[1:3]
    if bias.shape[1] == shared * n:
        return bias.unflatten(1, (shared, n))
    return bias[:, :, None]


def _softmax(logits: Tensor, value: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Output [B, H, Q, Dh] and log-sum-exp [B, H, Q] of one group."""
    share = logits.logsumexp(-1)
    base = share.masked_fill(share == -torch.inf, 0.0)
    weights = (logits - base[..., None]).exp()
    there = weights.flatten(2, 3) @ value
    return there.view(*shape[:3], value.shape[-1]), share.view(shape[:3])
