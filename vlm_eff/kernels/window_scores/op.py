"""What keys get from a few rows of attention, and the logarithm of what each row adds up to."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.window_scores import fast, launch, reference
from vlm_eff.kernels.window_scores.visible import Sight, check

_SCORES = Forms(
    "window_scores",
    reference=reference.window_scores,
    torch=fast.window_scores,
    triton=launch.window_scores,
    limits={"triton": launch.limits},
)
_LSE = Forms(
    "window_lse",
    reference=reference.window_lse,
    torch=fast.window_lse,
    triton=launch.window_lse,
    limits={"triton": launch.limits},
)


def window_scores(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    column: Tensor | None = None,
    first: Tensor | None = None,
    looks: Tensor | None = None,
    weight: Tensor | None = None,
    lse: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
    reduce: Literal["sum", "max"] = "sum",
    grouped: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Attention that some query rows pay to each key, reduced over the rows, without their matrix of attention.

        score[j] = sum over rows r of weight[r] * softmax over keys(scaling * q_r k)[j]

    query:   [B, H, R, Dh] the rows, a handful to some hundreds; key: [B, Hkv, S, Dh] all keys, H a multiple of Hkv
    scaling: factor of the logits; softcap: they become softcap * tanh(logits / softcap), or None
    column:  [B, R] the last key a row may look at, -1 for a row that does not count; None where the rows are the last R
             of the S positions. causal=False: every row looks at all keys
    first:   [B] or [B, R] the first key a row may look at (left padding, sliding windows), or None
    looks:   [B, 1 | Hkv | H, 1 | R, S] bool, False for what else a row may not look at (the model's own mask), or None
    weight:  [B, R] how much each row counts, 0 for not at all; None counts every row once
    lse:     [B, H, R] natural logarithm of each row's sum of exponentials, if it is known (from attention, or
             `window_lse`): saves the first of two passes over the keys
    reduce:  "sum" or "max" over rows; grouped: also over the query heads that share a key head

    Returns [B, Hkv, S] float32, or [B, H, S] if not `grouped` (float64 for float64 in the plain forms): exactly 0 for a
    key that no row may look at. A row that sees nothing pays nothing. Sums of all keys are the sum of the weights.
    The order of additions is fixed: equal inputs give equal bits. No gradients in the kernel; the torch form has them.

    Source: SnapKV (arXiv 2404.14469), FastV (2403.06764), PyramidDrop (2410.17247), VL-Cache (2410.23317) and ZipVL
    (2410.08584) all score by this sum; their official codes take it from an attention matrix. The softmax is over all
    keys that a row may look at, not over the visual ones.
    Costs 4 B H R S Dh FLOPs (half with `lse`) and two sweeps over the keys, read once for all heads that share them.
    Saves the float32 matrix [B, H, R, S] and the five sweeps over it.

    Raises:
        InputError: shapes that do not fit together.
        CapabilityError: a backend that was named cannot run here.
    """
    check(query, key, Sight(query.shape[-2], key.shape[-2], causal, column, first, looks), weight, lse)
    if reduce not in ("sum", "max"):
        raise InputError(explain(f"reduce={reduce!r}", '"sum" or "max"', "Choose one of them"))
    made: Tensor = _SCORES.run(
        backend, query, key, scaling=scaling, column=column, first=first, looks=looks, weight=weight, lse=lse,
        softcap=softcap, causal=causal, reduce=reduce, grouped=grouped,
    )  # fmt: skip
    return made


def window_lse(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    column: Tensor | None = None,
    first: Tensor | None = None,
    looks: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Natural logarithm of each row's sum of exponentials, [B, H, R] float32; -inf for a row that sees nothing.

    Arguments are those of `window_scores`; it is the first of its two passes, to be given to it, or to `column_scores`,
    more than once. Costs 2 B H R S Dh FLOPs and one sweep over the keys; rows that are in order skip what comes later.

    Raises:
        InputError: shapes that do not fit together.
        CapabilityError: a backend that was named cannot run here.
    """
    check(query, key, Sight(query.shape[-2], key.shape[-2], causal, column, first, looks), None, None)
    arguments: dict[str, Any] = {"scaling": scaling, "column": column, "first": first, "looks": looks}
    made: Tensor = _LSE.run(backend, query, key, **arguments, softcap=softcap, causal=causal)
    return made
