"""Attention among chosen tokens: rows of query, key and value are gathered, and rows of output scattered, inside.

A program walks over the compact sequence: the older keys in their order, then the chosen ones. In it the mask is the
ordinary causal one, so that only the last tiles of a block of rows need a mask. Statistics are float32, in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vlm_eff.kernels.device import tanh

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _visible(
    score, column, row, first, row_column, scale, cap,
    PADDED: tl.constexpr, CAPPED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Logits in base 2 of a tile of products; -inf where a row may not look."""
    score *= scale
    if CAPPED:
        score = cap * tanh(score)
    if CAUSAL:
        score = tl.where(column[None, :] <= row_column[:, None], score, float("-inf"))
    if PADDED:
        score = tl.where((row >= first)[None, :], score, float("-inf"))
    return score


@triton.jit
def _sweep(
    state, query, keys, values, index, first, row_column, start, stop, older, total, scale, cap,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, FRONT: tl.constexpr, BACK: tl.constexpr,
    PADDED: tl.constexpr, CAPPED: tl.constexpr, CAUSAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Fold columns start..stop of the compact sequence into the running softmax: maximum, sum, output."""
    top, mass, front, back = state
    for begin in tl.range(start, stop, COLUMNS, num_stages=STAGES):
        column = begin + tl.arange(0, COLUMNS)
        # behind the end the last key is read again: only what takes part is ever loaded
        held = tl.minimum(column, total - 1)
        place = tl.load(index + (held - older), mask=held >= older, other=0).to(tl.int32)
        row = tl.where(held < older, held, older + place)
        if PADDED:
            # a filler is at place -1: it lies before the first key, and its contents are read from anywhere
            row = tl.where(place < 0, -1, row)
        at = tl.maximum(row, 0).to(tl.int64)[:, None]
        key_at = keys[0] + at * keys[1]
        value_at = values[0] + at * values[1]
        dim = tl.arange(0, FRONT)[None, :]
        score = tl.dot(query[0], tl.trans(tl.load(key_at + dim)), input_precision="ieee")
        if BACK > 0:
            rest = FRONT + tl.arange(0, BACK)[None, :]
            key_rest = tl.load(key_at + rest, mask=rest < WIDTH, other=0.0)
            score = tl.dot(query[1], tl.trans(key_rest), score, input_precision="ieee")
        score = _visible(score, column, row, first, row_column, scale, cap, PADDED, CAPPED, CAUSAL)
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        top = higher
        mass = mass * fade + tl.sum(weight, 1)
        seen = tl.load(value_at + dim)
        front = tl.dot(weight.to(seen.dtype), seen, front * fade[:, None], input_precision="ieee")
        if BACK > 0:
            rest = FRONT + tl.arange(0, BACK)[None, :]
            seen_rest = tl.load(value_at + rest, mask=rest < WIDTH, other=0.0)
            back = tl.dot(weight.to(seen.dtype), seen_rest, back * fade[:, None], input_precision="ieee")
    return top, mass, front, back


@triton.jit
def _write(
    state, output, output_row, share, place, wanted,
    WIDTH: tl.constexpr, FRONT: tl.constexpr, BACK: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """Divide by the sum and store at the rows' own places; a row that saw nothing becomes 0 and -inf."""
    top, mass, front, back = state
    some = mass > 0.0
    whole = tl.where(some, mass, 1.0)[:, None]
    at = output + place.to(tl.int64)[:, None] * output_row
    tl.store(at + tl.arange(0, FRONT)[None, :], (front / whole).to(output.dtype.element_ty), mask=wanted[:, None])
    if BACK > 0:
        rest = FRONT + tl.arange(0, BACK)[None, :]
        made = (back / whole).to(output.dtype.element_ty)
        tl.store(at + rest, made, mask=wanted[:, None] & (rest < WIDTH))
    if LSE:
        natural = tl.where(some, (top + tl.log2(tl.where(some, mass, 1.0))) * LN2, float("-inf"))
        tl.store(share + place, natural, mask=wanted)


@triton.jit
def _blank(
    output, output_row, share, index, taken, number, chosen, places,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, FRONT: tl.constexpr, BACK: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """Make zeros of the rows that nobody chose: between the rows `taken` by a block, and behind the last block."""
    begin = tl.load(index + number * ROWS - 1, mask=number > 0, other=-1).to(tl.int32) + 1
    behind = (number + 1) * ROWS
    end = tl.load(index + behind - 1, mask=behind < chosen, other=places).to(tl.int32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        known = tl.max((row[:, None] == taken[None, :]).to(tl.int32), 1)
        free = (row < end) & (known == 0)
        at = output + row.to(tl.int64)[:, None] * output_row
        nothing = tl.full([ROWS, FRONT], 0.0, output.dtype.element_ty)
        tl.store(at + tl.arange(0, FRONT)[None, :], nothing, mask=free[:, None])
        if BACK > 0:
            rest = FRONT + tl.arange(0, BACK)[None, :]
            nothing_more = tl.full([ROWS, BACK], 0.0, output.dtype.element_ty)
            tl.store(at + rest, nothing_more, mask=free[:, None] & (rest < WIDTH))
        if LSE:
            tl.store(share + row, tl.full([ROWS], float("-inf"), tl.float32), mask=free)


@triton.jit
def attend_chosen(
    query, key, value, index, first, output, share,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    output_batch, output_head, output_row, index_batch,
    heads, pairs, older, chosen, places, scale, cap,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr, FRONT: tl.constexpr, BACK: tl.constexpr,
    FILLED: tl.constexpr, PADDED: tl.constexpr, CAPPED: tl.constexpr, LSE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: a block of chosen rows of one head of one row of the batch; the longest blocks begin first."""
    number = tl.cdiv(chosen, ROWS) - 1 - tl.program_id(0) // pairs
    pair = tl.program_id(0) % pairs
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    index += batch * index_batch
    output += batch * output_batch + head * output_head
    share += pair.to(tl.int64) * places
    own = number * ROWS + tl.arange(0, ROWS)
    place = tl.load(index + tl.minimum(own, chosen - 1)).to(tl.int32)
    wanted = (own < chosen) & (place >= 0)
    begins = 0
    if PADDED:
        begins = tl.load(first + batch).to(tl.int32)
    at = query + batch * query_batch + head * query_head + tl.maximum(place, 0).to(tl.int64)[:, None] * query_row
    asked = tl.load(at + tl.arange(0, FRONT)[None, :])
    asked_rest = asked
    back = tl.full([ROWS, 16], 0.0, tl.float32)
    if BACK > 0:
        rest = FRONT + tl.arange(0, BACK)[None, :]
        asked_rest = tl.load(at + rest, mask=rest < WIDTH, other=0.0)
        back = tl.full([ROWS, BACK], 0.0, tl.float32)
    keys = (key + batch * key_batch + head // GROUP * key_head, key_row)
    values = (value + batch * value_batch + head // GROUP * value_head, value_row)
    # finite, so that a row that sees nothing never computes inf - inf
    state = (tl.full([ROWS], -1.0e30, tl.float32), tl.full([ROWS], 0.0, tl.float32),
             tl.full([ROWS, FRONT], 0.0, tl.float32), back)  # fmt: skip
    total = older + chosen
    # every row of the block sees all columns up to the first row's own
    clear = (older + number * ROWS + 1) // COLUMNS * COLUMNS
    stop = tl.minimum(older + (number + 1) * ROWS, total)
    asked_both = (asked, asked_rest)
    state = _sweep(
        state, asked_both, keys, values, index, begins, older + own, 0, clear, older, total, scale, cap,
        COLUMNS, WIDTH, FRONT, BACK, PADDED, CAPPED, False, STAGES,
    )  # fmt: skip
    state = _sweep(
        state, asked_both, keys, values, index, begins, older + own, clear, stop, older, total, scale, cap,
        COLUMNS, WIDTH, FRONT, BACK, PADDED, CAPPED, True, STAGES,
    )  # fmt: skip
    _write(state, output, output_row, share, place, wanted, WIDTH, FRONT, BACK, LSE)
    if not FILLED:
        _blank(output, output_row, share, index, place, number, chosen, places, ROWS, WIDTH, FRONT, BACK, LSE)
