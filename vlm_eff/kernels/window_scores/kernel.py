"""Scores of keys in two passes that never write a logit: what the rows add up to, then what each key gets.

Rows are packed: row i of a pair of batch and key head is row `i % rows` of its query head `i // rows`, so that the
heads that share keys read them once. Logits have base 2 inside: their factor carries log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl

from vlm_eff.kernels.device import tanh

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# a running maximum that is finite: -inf minus -inf would be NaN
LEAST = tl.constexpr(-1e30)


@triton.jit
def _tile(base, start, steps, there, WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr):
    """Rows of `WIDTH` numbers in two parts of power-of-two width, zeros where there is nothing."""
    # a stride of 72 is no multiple of 16, which is all that Triton sees by itself: without this, loads are narrow
    offsets = tl.multiple_of(start + steps, [ALIGN])
    d = tl.arange(0, D1)
    first = tl.load(base + offsets[:, None] + d[None, :], mask=there[:, None], other=0.0)
    second = first
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        second = tl.load(base + offsets[:, None] + d2[None, :], mask=there[:, None] & (d2[None, :] < WIDTH), other=0.0)
    return first, second


@triton.jit
def _logits(left, left2, right, right2, factor, cap, D2: tl.constexpr, CAP: tl.constexpr):
    """Base-2 logits of every pair of a row on the left and a row on the right."""
    made = tl.dot(left, tl.trans(right), input_precision="ieee")
    if D2 > 0:
        made = tl.dot(left2, tl.trans(right2), made, input_precision="ieee")
    made = made * factor
    if CAP:
        made = cap * tanh(made)
    return made


@triton.jit
def _bounds(
    column, first, r, there, batch, scb, scr, sfb, sfr, past, keys, CAUSAL: tl.constexpr, FIRST: tl.constexpr
):  # fmt: skip
    """First and last key that each row may look at; the last is -1 where a row does not count."""
    last = tl.where(there, keys - 1, -1)
    if CAUSAL == 1:
        last = tl.where(there, past + r, -1)
    if CAUSAL == 2:
        known = tl.load(column + batch * scb + r * scr, mask=there, other=-1).to(tl.int32)
        last = tl.minimum(last, known)
    begin = last * 0
    if FIRST:
        begin = tl.maximum(tl.load(first + batch * sfb + r * sfr, mask=there, other=0).to(tl.int32), 0)
    return begin, last


@triton.jit
def _add_keys(
    begin, end, top, total, q, q2, low, last, key, at, looks, looking, keys, sks, sls, factor, cap,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr,
    LOOKS: tl.constexpr, CAP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add keys from `begin` to `end` to the running maximum and sum of each row."""
    for start in tl.range(begin, end, BN, num_stages=STAGES):
        n = start + tl.arange(0, BN)
        k, k2 = _tile(key, at, n.to(tl.int64) * sks, n < keys, WIDTH, D1, D2, ALIGN)
        made = _logits(q, q2, k, k2, factor, cap, D2, CAP)
        if MASKED:
            sees = (n[None, :] >= low[:, None]) & (n[None, :] <= last[:, None])
            if LOOKS:
                may = tl.load(looks + looking[:, None] + (n.to(tl.int64) * sls)[None, :], mask=sees, other=0)
                sees = sees & (may != 0)
            made = tl.where(sees, made, float("-inf"))
        higher = tl.maximum(top, tl.max(made, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(made - higher[:, None]), 1)
        top = higher
    return top, total


@triton.jit
def lse_kernel(
    query, key, column, first, looks, out,
    sqb, sqh, sqr, skb, skh, sks, scb, scr, sfb, sfr, slb, slk, slg, slr, sls,
    pairs, heads, group, rows, keys, past, chunk, factor, cap,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, FIRST: tl.constexpr, LOOKS: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """Logarithm of the sum of exponentials of each row over one part of the keys.

    One program: a tile of packed rows of one pair of batch and key head, and `chunk` keys (a multiple of BN).
    """
    tiles = (group * rows + BM - 1) // BM
    # the rows that see most come first
    tile = tiles - 1 - tl.program_id(0) % tiles
    pair = tl.program_id(0) // tiles
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    i = tile * BM + tl.arange(0, BM)
    there = i < group * rows
    g, r = i // rows, i % rows
    low, last = _bounds(column, first, r, there, batch, scb, scr, sfb, sfr, past, keys, CAUSAL, FIRST)
    counts = last >= low
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, tl.max(last, 0) + 1)
    if FIRST:
        begin = tl.maximum(begin, tl.min(tl.where(counts, low, keys), 0) // BN * BN)
    at = batch * sqb + head * group * sqh
    q, q2 = _tile(query, at, g.to(tl.int64) * sqh + r.to(tl.int64) * sqr, there, WIDTH, D1, D2, ALIGN)
    at = batch * skb + head * skh
    looks += batch * slb + head * slk
    looking = g.to(tl.int64) * slg + r.to(tl.int64) * slr
    top = tl.full([BM], LEAST, tl.float32)
    total = tl.full([BM], 0.0, tl.float32)
    # keys that every row of the tile sees need no mask
    inner, outer = begin, end
    if not LOOKS:
        outer = tl.minimum(end, (tl.min(tl.where(counts, last, keys), 0) + 1) // BN * BN)
        if FIRST:
            bound = (tl.max(tl.where(counts, low, 0), 0) + BN - 1) // BN * BN
            inner = tl.minimum(tl.maximum(begin, bound), tl.maximum(begin, end))
            top, total = _add_keys(
                begin, tl.minimum(inner, end), top, total, q, q2, low, last, key, at, looks, looking, keys, sks, sls,
                factor, cap, WIDTH, D1, D2, ALIGN, BN, STAGES, LOOKS, CAP, True,
            )  # fmt: skip
        outer = tl.maximum(inner, outer)
        top, total = _add_keys(
            inner, outer, top, total, q, q2, low, last, key, at, looks, looking, keys, sks, sls,
            factor, cap, WIDTH, D1, D2, ALIGN, BN, STAGES, LOOKS, CAP, False,
        )  # fmt: skip
        inner = outer
    top, total = _add_keys(
        inner, end, top, total, q, q2, low, last, key, at, looks, looking, keys, sks, sls,
        factor, cap, WIDTH, D1, D2, ALIGN, BN, STAGES, LOOKS, CAP, True,
    )  # fmt: skip
    made = tl.where(counts & (total > 0), (top + tl.log2(tl.where(total > 0, total, 1.0))) * LN2, float("-inf"))
    place = tl.program_id(1).to(tl.int64) * pairs * group * rows + pair.to(tl.int64) * group * rows + i
    tl.store(out + place, made, mask=there)


@triton.jit
def join_kernel(parts, out, count, splits, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    """Join the parts [splits, count] of each row's logarithm of a sum of exponentials into one."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, SPLITS)
    inside = (s[:, None] < splits) & (i[None, :] < count)
    at = s.to(tl.int64)[:, None] * count + i[None, :]
    made = tl.load(parts + at, mask=inside, other=float("-inf"))
    top = tl.maximum(tl.max(made, 0), LEAST)
    total = tl.sum(tl.exp2((made - top[None, :]) * LOG2E), 0)
    joined = top + tl.log2(tl.where(total > 0, total, 1.0)) * LN2
    tl.store(out + i, tl.where(total > 0, joined, float("-inf")), mask=i < count)


@triton.jit
def _add_rows(
    begin, end, got, k, k2, n, query, at, lse, column, first, looks, counts, batch, sqh, sqr, scb, scr, sfb, sfr,
    slg, slr, sls, swb, swr, rows, keys, past, factor, cap,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr, BR: tl.constexpr,
    STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, FIRST: tl.constexpr, LOOKS: tl.constexpr, CAP: tl.constexpr, WEIGHED: tl.constexpr,
    LARGEST: tl.constexpr, PACKED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what packed rows from `begin` to `end` pay to the keys n; their last tile may be cut off."""
    for start in tl.range(begin, end, BR, num_stages=STAGES):
        i = start + tl.arange(0, BR)
        there = i < end
        g, r = i * 0, i
        if PACKED:
            g, r = i // rows, i % rows
        q, q2 = _tile(query, at, g.to(tl.int64) * sqh + r.to(tl.int64) * sqr, there, WIDTH, D1, D2, ALIGN)
        total = tl.load(lse + i, mask=there, other=float("inf")) * LOG2E
        # a row that sees nothing pays nothing
        total = tl.where(total == float("-inf"), float("inf"), total)
        paid = tl.exp2(_logits(k, k2, q, q2, factor, cap, D2, CAP) - total[None, :])
        if MASKED:
            low, last = _bounds(column, first, r, there, batch, scb, scr, sfb, sfr, past, keys, CAUSAL, FIRST)
            sees = (n[:, None] >= low[None, :]) & (n[:, None] <= last[None, :])
            if LOOKS:
                looking = g.to(tl.int64) * slg + r.to(tl.int64) * slr
                may = tl.load(looks + looking[None, :] + (n.to(tl.int64) * sls)[:, None], mask=sees, other=0)
                sees = sees & (may != 0)
            paid = tl.where(sees, paid, 0.0)
        if WEIGHED:
            factors = tl.load(counts + batch * swb + r * swr, mask=there, other=0.0)
            # what a row without a weight holds may be no number
            paid = tl.where(factors[None, :] != 0, paid * factors[None, :], 0.0)
        if LARGEST:
            got = tl.maximum(got, tl.max(paid, 1))
        else:
            got += tl.sum(paid, 1)
    return got


@triton.jit
def scores_kernel(
    query, key, lse, column, first, looks, weight, out,
    sqb, sqh, sqr, skb, skh, sks, scb, scr, sfb, sfr, slb, slk, slg, slr, sls, swb, swr,
    heads, group, rows, keys, past, factor, cap,
    WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ALIGN: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr, STAGES: tl.constexpr,
    CAUSAL: tl.constexpr, FIRST: tl.constexpr, LOOKS: tl.constexpr, CAP: tl.constexpr, WEIGHED: tl.constexpr,
    LARGEST: tl.constexpr, PACKED: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    """What a block of keys gets from all rows, once the logarithms of the rows' sums of exponentials are known.

    One program: BN keys, which are the rows of its tile, and all query heads of a key head (PACKED) or one of them.
    MASKS: 2 where any pair may be one that does not see, 1 where that is on the diagonal alone, 0 nowhere.
    No program writes where another does: the order of additions is fixed.
    """
    shared = 1
    if not PACKED:
        shared = group
    # heads that read the same keys are neighbours
    inner = tl.program_id(0) % shared
    blocks = (keys + BN - 1) // BN
    block = tl.program_id(0) // shared % blocks
    pair = tl.program_id(0) // shared // blocks
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    n = block * BN + tl.arange(0, BN)
    k, k2 = _tile(key, batch * skb + head * skh, n.to(tl.int64) * sks, n < keys, WIDTH, D1, D2, ALIGN)
    at = batch * sqb + (head * group + inner) * sqh
    lse += (pair.to(tl.int64) * group + inner) * rows
    looks += batch * slb + head * slk + inner.to(tl.int64) * slg
    end = rows
    if PACKED:
        end = rows * group
    begin, edge = 0, end
    if (CAUSAL == 1) and (not PACKED):
        # rows above the diagonal see nothing of the block
        begin = tl.minimum(tl.maximum(block * BN - past, 0) // BR * BR, end)
    if MASKS == 1:
        # and those below it all of it
        edge = tl.minimum((tl.maximum(block * BN + BN - 1 - past, 0) + BR - 1) // BR * BR, end)
    if MASKS == 0:
        edge = 0
    got = tl.full([BN], 0.0, tl.float32)
    if MASKS > 0:
        got = _add_rows(
            begin, edge, got, k, k2, n, query, at, lse, column, first, looks, weight, batch, sqh, sqr, scb, scr,
            sfb, sfr, slg, slr, sls, swb, swr, rows, keys, past, factor, cap,
            WIDTH, D1, D2, ALIGN, BR, STAGES, CAUSAL, FIRST, LOOKS, CAP, WEIGHED, LARGEST, PACKED, True,
        )  # fmt: skip
    if MASKS < 2:
        got = _add_rows(
            edge, end, got, k, k2, n, query, at, lse, column, first, looks, weight, batch, sqh, sqr, scb, scr,
            sfb, sfr, slg, slr, sls, swb, swr, rows, keys, past, factor, cap,
            WIDTH, D1, D2, ALIGN, BR, STAGES, CAUSAL, FIRST, LOOKS, CAP, WEIGHED, LARGEST, PACKED, False,
        )  # fmt: skip
        if FIRST:
            # then all rows of a batch have the same first key
            got = tl.where(n >= tl.load(first + batch * sfb).to(tl.int32), got, 0.0)
    place = (pair.to(tl.int64) * shared + inner) * keys + n
    tl.store(out + place, got, mask=n < keys)
