"""Column sums of attention over all rows, from the logarithm of what each row adds up to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.column_scores import launch
from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.window_scores import fast, reference
from vlm_eff.kernels.window_scores.launch import limits
from vlm_eff.kernels.window_scores.visible import Sight, check, visible_rows

# what keys get has one meaning, whatever the number of rows: only the kernel is laid out for many of them
_FORMS = Forms(
    "column_scores",
    reference=reference.window_scores,
    torch=fast.window_scores,
    triton=launch.column_scores,
    limits={"triton": limits},
)


def column_scores(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    lse: Tensor | None = None,
    column: Tensor | None = None,
    first: Tensor | None = None,
    looks: Tensor | None = None,
    weight: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
    normalise: Literal["none", "visible"] = "none",
    grouped: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Sum over all rows of the attention that each key gets, without the matrix of attention.

    Arguments are those of `window_scores`, for as many rows as there are keys: `query` [B, H, R, Dh] are the last R of
    the S positions, or with `column` [B, R] any subset of rows (probes). Rows are told apart by where they are, so that
    what a key gets from above the diagonal is never computed; with `column` or `looks` it is computed and hidden.

    lse:       [B, H, R] natural logarithm of each row's sum of exponentials, which attention kernels return; without it
               one more pass over the keys finds it
    normalise: "none", or "visible" divides by the rows that may look at the key (each by its weight): sums of causal
               attention favour early keys

    Returns [B, Hkv, S] float32, summed over the query heads that share a key head, or [B, H, S] if not `grouped`;
    exactly 0 for a key that no row may look at. The order of additions is fixed.

    Source: H2O (arXiv 2306.14048), whose official code sums an eager matrix; "visible" is ZipCache (2405.14256).
    Costs half of what attention costs (2 B H R S Dh FLOPs, half of them above the diagonal and left out), as much again
    without `lse`. At 32k tokens that is milliseconds a layer: 128 probe rows cost less than a hundredth.
    Saves the float32 matrix: 120 GB a layer at 32k tokens and 28 heads.

    Raises:
        InputError: shapes that do not fit together, or an unknown `normalise`.
        CapabilityError: a backend that was named cannot run here.
    """
    sight = Sight(query.shape[-2], key.shape[-2], causal, column, first, looks)
    check(query, key, sight, weight, lse)
    if normalise not in ("none", "visible"):
        raise InputError(explain(f"normalise={normalise!r}", '"none" or "visible"', "Choose one of them"))
    made: Tensor = _FORMS.run(
        backend, query, key, scaling=scaling, column=column, first=first, looks=looks, weight=weight, lse=lse,
        softcap=softcap, causal=causal, reduce="sum", grouped=grouped,
    )  # fmt: skip
    if normalise == "none":
        return made
    rows = visible_rows(sight, weight, query.shape[0], query.device).to(made.dtype)
    if rows.shape[1] not in (1, made.shape[1]):
        by_head = rows.unflatten(1, (key.shape[1], -1))
        rows = by_head.sum(2) if grouped else rows
    elif grouped:
        rows = rows * (query.shape[1] // key.shape[1])
    return torch.where(rows > 0, made / rows, 0.0)
