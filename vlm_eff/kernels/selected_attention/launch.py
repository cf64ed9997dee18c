"""Launches the kernel for attention among chosen tokens, as an operation of torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_eff.kernels.register import register
from vlm_eff.kernels.selected_attention.tiles import TABLE
from vlm_eff.kernels.tiles import lookup, two_parts, why_no_tiles
from vlm_eff.kernels.triton_here import why_not_dense

# widths of heads as one or two powers of two; the tensor cores need 16 at least
WIDTHS = (16, 32, 64, 72, 80, 96, 128, 256)
LOG2E = 1.4426950408889634


def limits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None,
    *,
    scaling: float,
    first: Tensor | None,
    softcap: float | None,
    return_lse: bool,
) -> str | None:
    """Why the kernel cannot run on these arguments; None when it can."""
    width = query.shape[3]
    if width not in WIDTHS:
        return f"heads of width {width}, and the kernel takes {', '.join(map(str, WIDTHS))}"
    if value.shape[3] != width:
        return f"values of width {value.shape[3]} for queries of width {width}"
    return why_not_dense(query, key, value) or why_no_tiles(TABLE, query.device, sum(two_parts(width)), query.dtype)


def selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None,
    *,
    scaling: float,
    first: Tensor | None,
    softcap: float | None,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The form `triton`, see `op.selected_attention`."""
    output, share = launched(query, key, value, index, valid, first, scaling, softcap or 0.0, return_lse)
    return (output, share) if return_lse else output


def _outputs(query: Tensor, return_lse: bool) -> tuple[Tensor, Tensor]:
    """Uninitialised outputs [B, H, Q, Dh], laid out as [B, Q, H, Dh] for the projection behind, and [B, H, Q]."""
    batch, heads, places, width = query.shape
    output = query.new_empty(batch, places, heads, width).transpose(1, 2)
    share = query.new_empty((batch, heads, places) if return_lse else (0,), dtype=torch.float32)
    return output, share


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None,
    first: Tensor | None,
    scaling: float,
    softcap: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    from vlm_eff.kernels.selected_attention.kernel import attend_chosen

    batch, heads, places, width = query.shape
    chosen = index.shape[1]
    output, share = _outputs(query, return_lse)
    if valid is not None or not chosen:
        # rows are filled up anywhere, so that no block can tell which neighbours are free
        output.zero_()
        share.fill_(-math.inf)
    if not chosen or not query.numel():
        return output, share
    front, back = two_parts(width)
    tiles = lookup(TABLE, query.device, front + back, query.dtype)
    # a filler is at place -1
    index = index.contiguous() if valid is None else torch.where(valid, index, -1)
    padded = valid is not None or first is not None
    if first is None and padded:
        first = index.new_zeros(batch)
    scale = scaling / softcap if softcap else LOG2E * scaling
    grid = (-(-chosen // tiles.m) * batch * heads,)
    attend_chosen[grid](
        query, key, value, index, first, output, share,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *output.stride()[:3],
        index.stride(0), heads, batch * heads, key.shape[2] - places, chosen, places, scale, softcap * LOG2E,
        GROUP=heads // key.shape[1], ROWS=tiles.m, COLUMNS=tiles.n,
        WIDTH=width, FRONT=front, BACK=back,
        FILLED=valid is not None, PADDED=padded, CAPPED=softcap > 0, LSE=return_lse, STAGES=tiles.stages,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return output, share


def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None,
    first: Tensor | None,
    scaling: float,
    softcap: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    return _outputs(query, return_lse)


def _flops(query: list[int], key: list[int], value: list[int], index: list[int], *rest: object, **more: object) -> int:
    """Two products of the chosen rows with the older keys, and with half of the chosen ones."""
    batch, heads, places, width = query
    chosen, older = index[1], key[2] - places
    return batch * heads * (4 * width * chosen * older + 2 * width * chosen * chosen)


launched = register("selected_attention", _launch, fake=_fake, flops=_flops)
