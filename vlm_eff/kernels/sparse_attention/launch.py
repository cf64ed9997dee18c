"""Launches the kernel as an operation of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.register import register
from vlm_eff.kernels.sparse_attention.tiles import SMALL, TABLE
from vlm_eff.kernels.tiles import Tiles, lookup, two_parts, why_no_tiles
from vlm_eff.kernels.triton_here import why_not_dense

# what `window` says of a rule without one: every key lies before it
NO_WINDOW = -(1 << 29)


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
    """The fused kernel; no intermediate in memory."""
    window = NO_WINDOW if rule.window is None else rule.window
    text = rule.text.view(torch.uint8) if rule.text is not None else None
    tensors = (lists.full_count, lists.full_index, lists.part_count, lists.part_index)
    output, lse = launched(
        query, key, value, *tensors, lists.column_count, lists.column_index, rule.first, text,
        lists.rows, lists.columns, rule.causal, rule.sinks, window, scaling, softcap or 0.0,
    )  # fmt: skip
    return (output, lse) if return_lse else output


def why_not(query: Tensor, key: Tensor, value: Tensor, lists: BlockLists, rule: Rule, **_: Any) -> str | None:
    """Why the kernel cannot take these arguments; None when it can."""
    width = query.shape[3]
    if width % 8 or not 16 <= width <= 256:
        return f"heads are {width} wide, and the kernel takes multiples of 8 from 16 to 256"
    if lists.rows % 16 or lists.columns % 16:
        return f"blocks are {lists.rows} x {lists.columns}, and the kernel takes multiples of 16"
    return why_not_dense(query, key, value) or why_no_tiles(TABLE, query.device, width, query.dtype)


def chosen(device: torch.device, width: int, dtype: torch.dtype, rows: int, columns: int) -> Tiles:
    """Tiles from the tables, cut to what divides a block of the lists."""
    tiles = lookup(TABLE if rows % 128 == 0 else SMALL, device, width, dtype)
    return replace(tiles, m=min(tiles.m, rows & -rows), n=min(tiles.n, columns & -columns))


def _launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    full_count: Tensor,
    full_index: Tensor,
    part_count: Tensor,
    part_index: Tensor,
    column_count: Tensor | None,
    column_index: Tensor | None,
    first: Tensor | None,
    text: Tensor | None,
    rows: int,
    columns: int,
    causal: bool,
    sinks: int,
    window: int,
    scaling: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    from vlm_eff.kernels.sparse_attention.kernel import attend

    batch, heads, length, width = query.shape
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    tiles = chosen(query.device, width, query.dtype, rows, columns)
    part, part2 = two_parts(width)
    # tensors that are not there are never read: any pointer does
    line_count = full_count if column_count is None else column_count
    line_index = full_index if column_index is None else column_index
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    # rows of 72 numbers begin at multiples of 8, which is enough for loads of 16 bytes
    unit = 8 if all(stride % 8 == 0 for stride in strides) else 1
    attend[(-(-length // tiles.m), heads, batch)](
        query, key, value, output, lse, full_count, full_index, part_count, part_index, line_count, line_index,
        full_count if first is None else first, query if text is None else text,
        *(stride // unit for stride in strides),
        full_count.stride(0) if full_count.shape[0] > 1 else 0, full_count.stride(1) if full_count.shape[1] > 1 else 0,
        full_index.shape[3], part_index.shape[3], line_index.shape[-1],
        0 if first is None or first.shape[0] == 1 else 1, 0 if text is None or text.shape[0] == 1 else text.stride(0),
        length, key.shape[2], sinks, window, scaling, softcap,
        HEADS=heads, SHARED=heads // key.shape[1], WIDTH=width, PART=part, PART2=part2, M=tiles.m, N=tiles.n,
        ROWS=rows, COLUMNS=columns, CAUSAL=causal, LOCAL=text is not None or window != NO_WINDOW,
        TEXT=text is not None, FIRST=first is not None, SINGLE=column_count is not None, CAP=softcap > 0, UNIT=unit,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return output, lse


def _fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)


def _flops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    full_count: Tensor,
    full_index: Tensor,
    part_count: Tensor,
    part_index: Tensor,
    column_count: Tensor | None,
    column_index: Tensor | None,
    first: Tensor | None,
    text: Tensor | None,
    rows: int,
    columns: int,
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """Two products of rows and keys for what is listed; a block counts whole, whatever the rule hides inside.

    Tensors without contents (a traced graph) count as full lists: as long as they are wide, all keys at most.
    """
    batch, heads, _, width = query.shape
    if isinstance(full_count, FakeTensor) or full_count.is_meta:
        blocks = full_index.shape[3] + part_index.shape[3]
        single = 0 if column_index is None else column_index.shape[3]
        keys = min(blocks * columns + single, key.shape[2]) * full_count.numel()
    else:
        keys = int((full_count.long() + part_count).sum()) * columns
        keys += 0 if column_count is None else int(column_count.sum())
    # lists that rows of the batch or heads share are walked through by each of them
    shared = batch // full_count.shape[0] * (heads // full_count.shape[1])
    return 4 * width * rows * keys * shared


launched = register("sparse_attention", _launch, fake=_fake, flops=_flops, contents=True)
