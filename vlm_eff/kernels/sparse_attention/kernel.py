"""The kernel: one program for a tile of queries of one head, which walks through the blocks that are listed for it.

Scores are exponentiated in base 2. The running maximum starts at a finite number, so that rows which see nothing have
no difference of infinities in them. What a rule forbids is folded into vectors once a tile: a pair then costs two
comparisons, whatever the rule.
"""

import triton
import triton.language as tl

from vlm_eff.kernels.device import tanh


@triton.jit
def _load(pointer, offsets, there, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Numbers START to START + PART of rows; 0 beyond WIDTH and in rows that are not there."""
    column = START + tl.arange(0, PART)
    mask = there[:, None]
    if START + PART > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(pointer + offsets[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def _reach(position, there, window, text, CAUSAL: tl.constexpr, TEXT: tl.constexpr, M: tl.constexpr):
    """For each query the place up to which it sees, and the place after which it sees all: others are tested there."""
    reach, behind = tl.full([M], (1 << 30) - 1, tl.int32), position - window
    if CAUSAL:
        reach = position
    if TEXT:
        behind = tl.where(tl.load(text + position, mask=there, other=0) != 0, -1, behind)
    return reach, behind


@triton.jit
def _pairs(column, there, reach, behind, first, sinks, text, LOCAL: tl.constexpr, TEXT: tl.constexpr):
    """Which pairs of a tile the rule lets through: keys up to `reach`, and after `behind` unless they are special.

    Keys that are hidden from all, and keys that all may see, are moved to a place where the comparison comes out so.
    """
    beyond = tl.full(column.shape, 1 << 30, tl.int32)
    shown = tl.where(there & (column >= first), column, beyond)
    seen = shown[None, :] <= reach[:, None]
    if LOCAL:
        special = column < first + sinks
        if TEXT:
            special = special | (tl.load(text + column, mask=there, other=0) != 0)
        seen = seen & (tl.where(special, beyond, column)[None, :] > behind[:, None])
    return seen


@triton.jit
def _absorb(
    queries, queries2, top, total, sums, sums2, seen, keys, key_offsets, values, value_offsets, there, scaling, cap,
    MASKED: tl.constexpr, CAP: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys and values into the running softmax."""
    loaded = _load(keys, key_offsets, there, 0, PART, WIDTH)
    scores = tl.dot(queries, tl.trans(loaded), input_precision="ieee")
    if PART2 > 0:
        loaded2 = _load(keys, key_offsets, there, PART, PART2, WIDTH)
        scores = tl.dot(queries2, tl.trans(loaded2), scores, input_precision="ieee")
    factor = scaling * 1.4426950408889634
    if CAP:
        scores = cap * tanh(scores * (scaling / cap))
        factor = 1.4426950408889634
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    read = _load(values, value_offsets, there, 0, PART, WIDTH)
    sums = tl.dot(weights.to(read.dtype), read, sums * shrink[:, None], input_precision="ieee")
    if PART2 > 0:
        read2 = _load(values, value_offsets, there, PART, PART2, WIDTH)
        sums2 = tl.dot(weights.to(read2.dtype), read2, sums2 * shrink[:, None], input_precision="ieee")
    return higher, total, sums, sums2


@triton.jit
def _walk(
    queries, queries2, top, total, sums, sums2, count, index, key, value, key_r, value_r, key_length, reach, behind,
    first, sinks, text, scaling, cap, MASKED: tl.constexpr, LOCAL: tl.constexpr, TEXT: tl.constexpr,
    CAP: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr, N: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Take in all blocks of a list, N keys at a time."""
    lane = tl.arange(0, N)
    for step in tl.range(0, count * (COLUMNS // N)):
        begin = tl.load(index + step // (COLUMNS // N)) * COLUMNS + step % (COLUMNS // N) * N
        inside = lane < key_length - begin
        seen = inside
        if MASKED:
            seen = _pairs(begin + lane, inside, reach, behind, first, sinks, text, LOCAL, TEXT)
        top, total, sums, sums2 = _absorb(
            queries, queries2, top, total, sums, sums2, seen, key + begin.to(tl.int64) * key_r, lane * key_r,
            value + begin.to(tl.int64) * value_r, lane * value_r, inside, scaling, cap,
            MASKED, CAP, WIDTH, PART, PART2,
        )  # fmt: skip
    return top, total, sums, sums2


@triton.jit
def _store(
    output, lse, offsets, rows, there, top, total, sums, sums2,
    WIDTH: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr,
):  # fmt: skip
    """Divide by the sum and write; a row that saw nothing gets zeros and -inf."""
    empty = total == 0
    divisor = tl.where(empty, 1.0, total)
    tl.store(lse + rows, tl.where(empty, float("-inf"), (top + tl.log2(divisor)) * 0.6931471805599453), mask=there)
    column = tl.arange(0, PART)
    made = (sums / divisor[:, None]).to(output.dtype.element_ty)
    tl.store(output + offsets[:, None] + column[None, :], made, mask=there[:, None] & (column < WIDTH)[None, :])
    if PART2 > 0:
        column2 = PART + tl.arange(0, PART2)
        made2 = (sums2 / divisor[:, None]).to(output.dtype.element_ty)
        tl.store(output + offsets[:, None] + column2[None, :], made2, mask=there[:, None] & (column2 < WIDTH)[None, :])


@triton.jit(
    do_not_specialize=["query_length", "key_length", "sinks", "window", "full_width", "part_width", "column_width"]
)
def attend(
    query, key, value, output, lse, full_count, full_index, part_count, part_index, column_count, column_index,
    first, text, query_b, query_h, query_r, key_b, key_h, key_r, value_b, value_h, value_r, list_b, list_h,
    full_width, part_width, column_width, first_b, text_b, query_length, key_length, sinks, window, scaling, cap,
    HEADS: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, PART2: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
    LOCAL: tl.constexpr, TEXT: tl.constexpr, FIRST: tl.constexpr, SINGLE: tl.constexpr, CAP: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Attention of M queries of one head. Grid: tiles of queries, heads, rows of the batch; last tiles start first."""
    # the last queries of a causal prompt have the longest lists: started last they would run alone
    tile, head, b = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    # strides come in units, so that the compiler knows what they are multiples of: it looks for 16, and 72 is none
    query_r, key_r, value_r = query_r * UNIT, key_r * UNIT, value_r * UNIT
    query += (b * query_b + head.to(tl.int64) * query_h) * UNIT
    key += (b * key_b + (head // SHARED).to(tl.int64) * key_h) * UNIT
    value += (b * value_b + (head // SHARED).to(tl.int64) * value_h) * UNIT
    row = tile * M + tl.arange(0, M)
    there, far = row < query_length, row.to(tl.int64)
    queries = _load(query, far * query_r, there, 0, PART, WIDTH)
    queries2 = queries
    if PART2 > 0:
        queries2 = _load(query, far * query_r, there, PART, PART2, WIDTH)
    place = b * list_b + head * list_h + tile * M // ROWS
    start = 0
    if FIRST:
        start = tl.load(first + b * first_b)
    text += b * text_b
    reach, behind = _reach(row + (key_length - query_length), there, window, text, CAUSAL, TEXT, M)
    top = tl.full([M], -1e30, tl.float32)
    total, sums = tl.full([M], 0.0, tl.float32), tl.full([M, PART], 0.0, tl.float32)
    sums2 = tl.full([M, PART2 if PART2 > 0 else 1], 0.0, tl.float32)
    top, total, sums, sums2 = _walk(
        queries, queries2, top, total, sums, sums2, tl.load(full_count + place), full_index + place * full_width,
        key, value, key_r, value_r, key_length, reach, behind, start, sinks, text, scaling, cap,
        False, LOCAL, TEXT, CAP, WIDTH, PART, PART2, N, COLUMNS,
    )  # fmt: skip
    top, total, sums, sums2 = _walk(
        queries, queries2, top, total, sums, sums2, tl.load(part_count + place), part_index + place * part_width,
        key, value, key_r, value_r, key_length, reach, behind, start, sinks, text, scaling, cap,
        True, LOCAL, TEXT, CAP, WIDTH, PART, PART2, N, COLUMNS,
    )  # fmt: skip
    if SINGLE:
        single, lane = tl.load(column_count + place), tl.arange(0, N)
        for step in tl.range(0, (single + N - 1) // N):
            inside = step * N + lane < single
            column = tl.load(column_index + place * column_width + step * N + lane, mask=inside, other=0)
            seen = _pairs(column, inside, reach, behind, start, sinks, text, LOCAL, TEXT)
            top, total, sums, sums2 = _absorb(
                queries, queries2, top, total, sums, sums2, seen, key, column.to(tl.int64) * key_r,
                value, column.to(tl.int64) * value_r, inside, scaling, cap,
                True, CAP, WIDTH, PART, PART2,
            )  # fmt: skip
    at = (b * HEADS + head) * query_length
    _store(
        output + at * WIDTH, lse + at, far * WIDTH, row, there, top, total, sums, sums2, WIDTH, PART, PART2
    )  # fmt: skip
