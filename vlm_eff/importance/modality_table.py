"""One key for all modalities, scaled by who looks at it: a table of factors alpha[query modality, key modality].

A scaled copy of every key for each modality that may look at it (the unified representation of surveys) needs as many
times the memory as there are modalities. Scaling a key is scaling its logits, so one copy and a table do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain


def modality_table(alpha: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """The table [M, M] of factors as a tensor; a tensor stays itself, so that it can be learned.

    alpha[m, n] scales the logits of queries of modality m with keys of modality n; all ones change nothing. A factor of
    0 makes logits 0, that is, all such keys equally likely: it is no mask.

    Raises:
        ConfigError: unless it is square, not empty, floating point and finite.
    """
    try:
        made = alpha if isinstance(alpha, Tensor) else torch.tensor(alpha, dtype=torch.float32)
    except (TypeError, ValueError):
        made = torch.empty(0)
    square = made.ndim == 2 and made.shape[0] == made.shape[1] > 0
    if not square or not made.is_floating_point() or not bool(made.detach().isfinite().all()):
        accepted = "a square table of finite numbers, one line and one column for each modality"
        raise ConfigError(explain(f"alpha={alpha!r}", accepted, "Give rows such as [[1.0, 0.9], [0.9, 1.0]]"))
    return made


def key_factors(alpha_row: Tensor, modality: Tensor) -> Tensor:
    """Factor of each key [..., S] for one modality of queries.

    alpha_row: [M], a line of the table, or [B, M], one line for each row of the batch
    modality:  [B, S] or [B, Hkv, S] integers below M; negative ones (fillers) get 1
    """
    line = alpha_row.expand(modality.shape[0], -1)
    line = line.view(line.shape[0], *[1] * (modality.ndim - 2), -1).expand(*modality.shape[:-1], -1)
    return torch.where(modality < 0, 1.0, line.gather(-1, modality.long().clamp(min=0)))


def scale_logits(logits: Tensor, alpha: Tensor, query_modality: Tensor, key_modality: Tensor) -> Tensor:
    """Logits [B, H, R, S] of a few query rows times the table [M, M]; the same attention as with scaled keys.

    query_modality: [B, R]; key_modality: [B, S], or [B, Hkv, S] with H a multiple of Hkv; integers below M, negative
    ones (padding) get 1. What is masked by -inf stays so; a mask of large finite numbers has to be added afterwards,
    because a factor of 0 would undo it. The factors take as much memory as the logits of one head, or of Hkv.
    """
    lines = torch.where((query_modality < 0)[..., None], 1.0, alpha[query_modality.long().clamp(min=0)])
    keys = key_modality if key_modality.ndim == 3 else key_modality[:, None]
    shape = (*keys.shape[:2], lines.shape[1], keys.shape[2])
    column = keys.long().clamp(min=0)[:, :, None].expand(shape)
    factors = lines[:, None].expand(*shape[:3], -1).gather(-1, column)
    factors = torch.where((keys < 0)[:, :, None], 1.0, factors)
    if factors.shape[1] > 1:
        factors = factors.repeat_interleave(logits.shape[1] // factors.shape[1], dim=1)
    hidden = logits == -torch.inf
    # -inf * 0 is no number, and neither is its gradient
    return (logits.masked_fill(hidden, 0.0) * factors).to(logits.dtype).masked_fill(hidden, -torch.inf)
