"""Scores of cache entries from a few rows of attention: sums, pooled sums, counts, the last row.

Throughout: attention [B, H, R, S] after the softmax; row_valid [B, R] which rows exist; looks [B, R, S] which keys a
row may look at (not padding, not what comes later), or [B, Hkv, R, S] where key heads store different entries; groups:
the number of key heads Hkv, each of which serves H / Hkv neighbouring query heads. Scores are [B, Hkv, S], higher =
keep, 0 for an entry nobody looks at. They are float32, or float64 where the attention is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain

# a weight must not count as below a bound by a float's last digit
_SLACK = 1e-5


def real(values: Tensor) -> Tensor:
    """The values in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def visible(row_valid: Tensor, looks: Tensor, heads: int) -> Tensor:
    """Which pairs of row and key exist [B, 1, R, S], or [B, heads, R, S] where key heads store different entries."""
    if looks.dim() == 3:
        return (looks & row_valid[:, :, None])[:, None]
    return (looks & row_valid[:, None, :, None]).repeat_interleave(heads // looks.shape[1], dim=1)


def seen(attention: Tensor, row_valid: Tensor, looks: Tensor) -> Tensor:
    """Attention with exact 0 for pairs that do not exist, whatever stood there [B, H, R, S]."""
    return real(attention).masked_fill(~visible(row_valid, looks, attention.shape[1]), 0.0)


def by_group(values: Tensor, groups: int) -> Tensor:
    """Sum over the query heads that share a key head: [B, H, ...] -> [B, Hkv, ...]."""
    return values.view(values.shape[0], groups, -1, *values.shape[2:]).sum(2)


def received(attention: Tensor, row_valid: Tensor, looks: Tensor, groups: int) -> Tensor:
    """What each entry gets from the rows, summed over them and over its query heads [B, Hkv, S].

    With all rows of the prompt this is H2O's score (arXiv:2306.14048), with the last w rows SnapKV's before pooling
    (arXiv:2404.14469), with the rows after the last image VL-Cache's (arXiv:2410.23317).
    """
    return by_group(seen(attention, row_valid, looks).sum(2), groups)


def pooled(scores: Tensor, kernel: int, kind: Literal["avg", "max"], present: Tensor) -> Tensor:
    """Each score replaced by the mean or the maximum of its `kernel` neighbours [B, Hkv, S] (SnapKV, arXiv:2404.14469).

    kernel: odd width; present: [B, S] or [B, Hkv, S] the candidates (without the window, which SnapKV does not pool)
    As in the official code the mean counts the zeros beyond both ends, so the first and last kernel // 2 candidates are
    biased low; the maximum is not. Neighbours are those among the candidates in their order: padding and holes are
    closed up before pooling, so that a padded row gets what it gets alone. 0 for what is no candidate.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(explain(f"kernel={kernel}", "an odd number of at least 1", "Use 5 or 7, or 1 for no pooling"))
    there = (present if present.dim() == 3 else present[:, None]).expand(scores.shape)
    # candidates to the front, in order; what follows them is beyond the end
    order = torch.argsort((~there).to(torch.int8), dim=2, stable=True)
    front = there.gather(2, order)
    lined = real(scores).gather(2, order)
    if not lined.shape[2]:
        return lined
    if kind == "avg":
        made = torch.nn.functional.avg_pool1d(lined.masked_fill(~front, 0.0), kernel, 1, kernel // 2)
    else:
        made = torch.nn.functional.max_pool1d(lined.masked_fill(~front, -torch.inf), kernel, 1, kernel // 2)
    return torch.zeros_like(lined).scatter_(2, order, made.masked_fill(~front, 0.0))


def unread(attention: Tensor, row_valid: Tensor, looks: Tensor, groups: int, length: Tensor | None = None) -> Tensor:
    """How often each entry got less than an even share, counted over rows and query heads [B, Hkv, S]; higher = worse.

    length: [B] or [B, Hkv] entries t of which 1 / t is the even share (Scissorhands, arXiv:2305.17118, takes the
        present length for all rows); None takes for each row what it may look at
    Rows that may not look at an entry do not count against it. A share that is even up to rounding is not below it.
    Scores are minus this count: a count, not a mass, so that one heavy row does not save an entry.
    """
    there = visible(row_valid, looks, attention.shape[1])
    even = there.sum(3, keepdim=True)
    if length is not None:
        each = length.expand(groups, -1).T if length.dim() == 1 else length
        even = each.repeat_interleave(attention.shape[1] // groups, dim=1)[:, :, None, None]
    below = seen(attention, row_valid, looks) * even < 1 - _SLACK
    return by_group((below & there).sum(2), groups).to(real(attention).dtype)


def last_row(attention: Tensor, row_valid: Tensor, looks: Tensor, groups: int) -> Tensor:
    """What the last existing row gives each entry, mean over all heads, the same for every key head [B, Hkv, S].

    TOVA, arXiv:2401.06104. 0 for a sample without rows.
    """
    rows = row_valid.shape[1]
    place = torch.arange(1, rows + 1, device=row_valid.device)
    last = row_valid & (place == (place * row_valid).amax(1, keepdim=True))
    score = seen(attention, last, looks).sum(2).mean(1, keepdim=True)
    return score.expand(-1, groups, -1)
