"""Launching the merge: sort by place, then one kernel; integers alone decide where a number is added."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.merge.tiles import STEP, TABLE
from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import lookup, why_no_tiles
from vlm_eff.kernels.triton_here import why_not_dense


def limits(x: Tensor, into: Tensor, count: int, weight: Tensor | None) -> str | None:
    """Why the kernel cannot run on these arguments; None when it can."""
    if (reason := why_not_dense(x)) is not None:
        return reason
    if weight is not None and weight.dtype != torch.float32:
        return f"sizes or weights are {weight.dtype}, and the kernel reads float32"
    return why_no_tiles(TABLE, x.device, STEP, x.dtype)


def _launch(x: Tensor, into: Tensor, count: int, weight: Tensor | None, shared: bool) -> tuple[Tensor, Tensor]:
    from vlm_eff.kernels.merge.kernel import sum_into_kernel

    rows, tokens, width = x.shape
    made = torch.empty(rows, count, width, dtype=x.dtype, device=x.device)
    total = torch.empty(rows, count if shared else 0, dtype=torch.float32, device=x.device)
    if rows * count == 0:
        return made, total.zero_()
    tiles = lookup(TABLE, x.device, STEP, x.dtype)
    place, order = into.sort(dim=1, stable=True)
    places = torch.arange(count + 1, dtype=place.dtype, device=x.device).expand(rows, -1).contiguous()
    start = torch.searchsorted(place, places)
    blocks = -(-count // tiles.m)
    sum_into_kernel[(rows * blocks, max(1, -(-width // tiles.n)))](
        x,
        total if weight is None else weight.contiguous(),
        order,
        start,
        made,
        total,
        tokens,
        count,
        blocks,
        x.stride(0),
        x.stride(1),
        WIDTH=width,
        WEIGHTED=weight is not None,
        SHARED=shared,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=True,
    )
    return made, total


def _fake(x: Tensor, into: Tensor, count: int, weight: Tensor | None, shared: bool) -> tuple[Tensor, Tensor]:
    made = x.new_empty(x.shape[0], count, x.shape[2])
    return made, x.new_empty(x.shape[0], count if shared else 0, dtype=torch.float32)


def _flops(
    x: tuple[int, ...],
    into: tuple[int, ...],
    count: int,
    weight: tuple[int, ...] | None,
    shared: bool,
    *,
    out_shape: object,
) -> int:
    return 2 * x[0] * x[1] * x[2]


launched = register("sum_into", _launch, fake=_fake, flops=_flops)


def merge_tokens(hidden: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means by size, and the sizes."""
    made, total = launched(hidden, into, count, size, True)
    return made, total


def sum_into(x: Tensor, into: Tensor, count: int, weight: Tensor | None) -> Tensor:
    """Sums by weight."""
    made, _ = launched(x, into, count, weight, False)
    return made  # type: ignore[no-any-return]
