"""Sums of tokens by place: a program owns its places and walks through those who go there."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_into_kernel(
    x,
    weight,
    order,
    start,
    made,
    total,
    tokens,
    count,
    blocks,
    x_row,
    x_token,
    WIDTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M places of one row, BLOCK_N numbers of each.

    x [N, T, WIDTH]; weight [N, T] float32; order [N, T] tokens sorted by place; start [N, count + 1] where in `order`
    those of a place begin; made [N, count, WIDTH]. SHARED: weights are divided by their sum of the place, which is
    written to total [N, count].
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = place < count
    number = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = (number < WIDTH)[None, :]
    border = start + row * (count + 1) + place
    first = tl.load(border, mask=inside, other=0)
    members = tl.load(border + 1, mask=inside, other=0) - first
    longest = tl.max(members, axis=0)
    order += row * tokens
    weight += row * tokens
    x += row * x_row
    whole = tl.full((BLOCK_M,), 0.0, tl.float32)
    if SHARED:
        for turn in range(longest):
            here = turn < members
            token = tl.load(order + first + turn, mask=here, other=0)
            if WEIGHTED:
                whole += tl.load(weight + token, mask=here, other=0.0)
            else:
                whole += tl.where(here, 1.0, 0.0)
        if tl.program_id(1) == 0:
            tl.store(total + row * count + place, whole, mask=inside)
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for turn in range(longest):
        here = turn < members
        token = tl.load(order + first + turn, mask=here, other=0)
        value = tl.load(x + token[:, None] * x_token + number[None, :], mask=here[:, None] & known, other=0.0)
        share = tl.where(here, 1.0, 0.0)
        if WEIGHTED:
            share = tl.load(weight + token, mask=here, other=0.0)
        if SHARED:
            # rounded exactly, so that the share of a token alone in its place is 1
            share = tl.div_rn(share, tl.where(whole > 0, whole, 1.0))
        acc += value.to(tl.float32) * share[:, None]
    at = (row * count + place)[:, None] * WIDTH + number[None, :]
    tl.store(made + at, acc.to(made.dtype.element_ty), mask=inside[:, None] & known)
