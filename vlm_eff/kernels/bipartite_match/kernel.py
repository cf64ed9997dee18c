"""The search for partners: a tile of similarities lives in registers and leaves one number and one place a line."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _products(
    source_at,
    goal_at,
    inside,
    there,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Products of tokens that begin at source_at [BLOCK_M, 1] and goal_at [BLOCK_N, 1], in float32."""
    made = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    feature, rest = tl.arange(0, STEP)[None, :], tl.arange(0, REST)[None, :]
    for step in tl.range(0, WIDTH - WIDTH % STEP, STEP, num_stages=STAGES):
        one = tl.load(source_at + step + feature, mask=inside[:, None], other=0.0)
        two = tl.load(goal_at + step + feature, mask=there[:, None], other=0.0)
        made = tl.dot(one, tl.trans(two), made, input_precision="ieee")
    if WIDTH % STEP:
        # what no step holds, filled up with zeros to a power of two
        last = (WIDTH - WIDTH % STEP) + rest
        one = tl.load(source_at + last, mask=inside[:, None] & (last < WIDTH), other=0.0)
        two = tl.load(goal_at + last, mask=there[:, None] & (last < WIDTH), other=0.0)
        made = tl.dot(one, tl.trans(two), made, input_precision="ieee")
    return made


@triton.jit
def best_partner_kernel(
    source,
    goal,
    source_length,
    goal_length,
    source_group,
    goal_group,
    target,
    best,
    partner,
    sources,
    goals,
    lines,
    share,
    source_row,
    source_token,
    goal_row,
    goal_token,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    REST: tl.constexpr,
    GROUPED: tl.constexpr,
    APART: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_M sources of one row against a share of its goals.

    source [N, A, WIDTH], goal [N, G, WIDTH], lengths [N, A] and [N, G] float32, groups [N, A] and [N, G]
    target [N, A] float32, read if FIRST; best [N, S, A] float32, written unless FIRST; partner [N, S, A] int32
    FIRST False: the largest similarity and its place; FIRST True: the first place with at least `target`, else `goals`.
    """
    row = (tl.program_id(0) // lines).to(tl.int64)
    line = (tl.program_id(0) % lines) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = line < sources
    split = tl.program_id(1)
    start = split * share
    stop = tl.minimum(start + share, goals)
    source_at = source + row * source_row + line[:, None] * source_token
    tiny = 1.1754943508222875e-38
    scale = 1.0 / tl.maximum(tl.load(source_length + row * sources + line, mask=inside, other=1.0), tiny)
    if GROUPED:
        kind = tl.load(source_group + row * sources + line, mask=inside, other=-1).to(tl.int32)
    if FIRST:
        least = tl.load(target + row * sources + line, mask=inside, other=0.0)
        place = tl.full((BLOCK_M,), 0, tl.int32) + goals
    else:
        place = tl.full((BLOCK_M,), 0, tl.int32)
    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for first in range(start, stop, BLOCK_N):
        other = first + tl.arange(0, BLOCK_N)
        there = other < stop
        goal_at = goal + row * goal_row + other[:, None] * goal_token
        like = _products(source_at, goal_at, inside, there, WIDTH, STEP, REST, BLOCK_M, BLOCK_N, STAGES)
        length = tl.load(goal_length + row * goals + other, mask=there, other=1.0)
        like = like * (1.0 / tl.maximum(length, tiny))[None, :]
        may = there[None, :]
        if GROUPED:
            goal_kind = tl.load(goal_group + row * goals + other, mask=there, other=-1).to(tl.int32)
            may = may & (kind[:, None] == goal_kind[None, :]) & (goal_kind >= 0)[None, :]
        if APART:
            may = may & (line[:, None] != other[None, :])
        if FIRST:
            # the same products as in the search for the largest, so that it is found again
            enough = may & (like * scale[:, None] >= least[:, None])
            place = tl.minimum(place, tl.min(tl.where(enough, other[None, :], goals), axis=1))
        else:
            value, at = tl.max(tl.where(may, like, float("-inf")), axis=1, return_indices=True)
            better = value > most
            place = tl.where(better, first + at, place)
            most = tl.where(better, value, most)
    out = (row * tl.num_programs(1) + split) * sources + line
    tl.store(partner + out, place, mask=inside)
    if FIRST == 0:
        tl.store(best + out, most * scale, mask=inside)
