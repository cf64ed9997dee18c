"""Rows of several tensors copied by one list of places, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy_rows(
    sources, targets, outer, inner, row_stride, widths, index, heads, kept,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS kept rows of one head and batch row, and one block of columns of every tensor that has it.

    index [B * heads, kept] is read once for all tensors; widths of rows and strides are tuples, one number a tensor.
    """
    pair = tl.program_id(1).to(tl.int64)
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (own < kept)[:, None]
    place = tl.load(index + pair * kept + own, mask=own < kept, other=0).to(tl.int64)[:, None]
    target_row = (pair * kept + own)[:, None]
    for number in tl.static_range(len(sources)):
        begin = tl.program_id(2) * COLUMNS[number]
        if begin < widths[number]:
            dim = begin + tl.arange(0, COLUMNS[number])[None, :]
            there = inside & (dim < widths[number])
            source = sources[number] + pair // heads * outer[number] + pair % heads * inner[number]
            row = tl.load(source + place * row_stride[number] + dim, mask=there)
            tl.store(targets[number] + target_row * widths[number] + dim, row, mask=there)
