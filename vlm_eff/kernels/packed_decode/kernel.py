"""Attention of a few query rows over packed entries: a program for each span of entries, then one that joins spans.

Where a group covers a tile, its scale is multiplied into the query (keys) or the weights (values), and the inner loop
is left with unpacking and the two products; what its middle code stands for becomes one sum a row. Exponents are to
base 2.
"""

# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005 - the compiler of kernels knows no starred expressions

from __future__ import annotations

import triton
import triton.language as tl

from vlm_eff.kernels.device import tanh
from vlm_eff.kernels.packed_decode.planes import (
    FOLD,
    channel_scores,
    channel_values,
    group,
    token_scores,
    token_values,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _queries(
    QUERY, VECTOR, rows, WIDTH: tl.constexpr, BG: tl.constexpr, ROOM: tl.constexpr, PLANE: tl.constexpr,
    HAS: tl.constexpr,
):  # fmt: skip
    """Query rows [BG, PLANE] in float32 for each place in a word, and the sum of each row."""
    made = ()
    row, word = tl.arange(0, BG), tl.arange(0, PLANE)
    total = tl.full([BG], 0.0, tl.float32)
    for i in tl.static_range(ROOM):
        at = ROOM * word + i
        there = (row < rows)[:, None] & (at < WIDTH)[None, :]
        query = tl.load(QUERY + row[:, None] * WIDTH + at[None, :], mask=there, other=0.0).to(tl.float32)
        if HAS:
            query *= tl.load(VECTOR + at, mask=at < WIDTH, other=0.0).to(tl.float32)[None, :]
        total += tl.sum(query, 1)
        made = made + (query,)
    return made, total


@triton.jit
def _cast(tensors, COUNT: tl.constexpr, KIND: tl.constexpr):
    made = ()
    for i in tl.static_range(COUNT):
        made = made + (tensors[i].to(KIND),)
    return made


@triton.jit
def _fold(
    query, SCALE, LOWEST, number, groups, factor, WIDTH: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    """Query [BG, Dh] times the scales of each channel's group `number`, and the scores of their middles [BG]."""
    line = tl.arange(0, query.shape[1])
    scale, centre = group(SCALE, LOWEST, line * groups + number, line < WIDTH, BITS)
    return ((query * (scale * factor)[None, :]).to(KIND),), tl.sum(query * (centre * factor)[None, :], 1)


@triton.jit
def _nothing(BG: tl.constexpr, PLANE: tl.constexpr, COUNT: tl.constexpr):
    made = ()
    for _ in tl.static_range(COUNT):
        made = made + (tl.full([BG, PLANE], 0.0, tl.float32),)
    return made


@triton.jit
def _entries(
    ORDER, start, count, BN: tl.constexpr, PLACES: tl.constexpr, ORDERED: tl.constexpr
):  # fmt: skip
    """Which entries [N] stand at each place of the tile's words, and which of them exist."""
    entries, seen = (), ()
    for i in tl.static_range(PLACES):
        at = start + PLACES * tl.arange(0, BN // PLACES) + i
        seen = seen + (at < count,)
        entries = entries + ((tl.load(ORDER + at, mask=at < count, other=0) if ORDERED else at),)
    return entries, seen


@triton.jit
def _scores(
    query, zero, KEY, SCALE, LOWEST, entries, seen, start, count, stride, filled, groups, factor,
    WIDTH: tl.constexpr, BN: tl.constexpr, PLACES: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr,
    CHANNEL: tl.constexpr, MODE: tl.constexpr, GROUP: tl.constexpr, PLANE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scores [BG, N] of the entries at each place."""
    if CHANNEL:
        made = channel_scores(
            query[0], zero, KEY, SCALE, LOWEST, start, count, stride, filled, groups, factor,
            WIDTH, BN, BITS, ROOM, MODE, GROUP, PLANE, ASM,
        )  # fmt: skip
    else:
        made = ()
        for i in tl.static_range(PLACES):
            score = token_scores(
                query, zero, KEY, SCALE, LOWEST, entries[i], seen[i], stride, groups, factor,
                WIDTH, BITS, ROOM, MODE, GROUP, PLANE, ASM,
            )  # fmt: skip
            made = made + (score,)
    return made


@triton.jit
def _shown(
    scores, BIAS, entries, seen, rows, share, bias_head, bias_query, bias_entry, cap,
    PLACES: tl.constexpr, BIASED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Scores in base 2, softly capped and biased; -inf for what does not exist."""
    made = ()
    for i in tl.static_range(PLACES):
        score = scores[i]
        if CAPPED:
            score = tanh(score / cap) * (cap * LOG2E)
        if BIASED:
            row = tl.arange(0, score.shape[0])
            base = row // share * bias_head + row % share * bias_query
            there = (row < rows)[:, None] & seen[i][None, :]
            at = base[:, None] + entries[i][None, :] * bias_entry
            score += tl.load(BIAS + at, mask=there, other=0.0).to(tl.float32) * LOG2E
        made = made + (tl.where(seen[i][None, :], score, -float("inf")),)
    return made


@triton.jit
def _weights(scores, high, mass, PLACES: tl.constexpr):
    """Weights [BG, N] of each tensor of scores, what older sums fade by, the new maximum, and the mass [BG, N].

    The mass is left spread over columns: one sum at the end, instead of one between threads for each tile.
    """
    best = scores[0]
    for i in tl.static_range(1, PLACES):
        best = tl.maximum(best, scores[i])
    top = tl.maximum(high, tl.max(best, 1))
    added = tl.exp2(scores[0] - top[:, None])
    made = (added,)
    for i in tl.static_range(1, PLACES):
        weight = tl.exp2(scores[i] - top[:, None])
        added += weight
        made = made + (weight,)
    fade = tl.exp2(high - top)
    return made, fade, top, mass * fade[:, None] + added, added


@triton.jit
def _folded(
    weights, low, unit, fade, SCALE, LOWEST, entries, seen, PLACES: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    """Weights times the scales of values by token, in units of `unit`, and the weighted sum of middles [BG, N]."""
    low *= fade[:, None]
    scales = ()
    largest = tl.full([entries[0].shape[0]], 0.0, tl.float32)
    for i in tl.static_range(PLACES):
        scale, centre = group(SCALE, LOWEST, entries[i], seen[i], BITS)
        low += weights[i] * centre[None, :]
        largest = tl.maximum(largest, scale)
        scales = scales + (scale,)
    if tl.float16 == KIND:
        # weights times small scales would leave the range of the type
        grown = tl.maximum(unit, tl.max(largest, 0))
        fade *= unit / grown
        unit = grown
    made = ()
    share = 1.0 / unit
    for i in tl.static_range(PLACES):
        made = made + (weights[i] * (scales[i] * share)[None, :],)
    return made, low, unit, fade


@triton.jit
def _add_tokens(
    totals, low, unit, weights, fade, VALUE, SCALE, LOWEST, entries, seen, stride, groups,
    WIDTH: tl.constexpr, PLACES: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr, MODE: tl.constexpr,
    GROUP: tl.constexpr, PLANE: tl.constexpr, ASM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Add a tile of values by token."""
    if MODE == FOLD:
        weights, low, unit, fade = _folded(weights, low, unit, fade, SCALE, LOWEST, entries, seen, PLACES, BITS, KIND)
    made = ()
    for i in tl.static_range(ROOM):
        made = made + (totals[i] * fade[:, None],)
    for i in tl.static_range(PLACES):
        made = token_values(
            made, weights[i].to(KIND), VALUE, SCALE, LOWEST, entries[i], seen[i], stride, groups,
            WIDTH, BITS, ROOM, MODE, GROUP, PLANE, ASM,
        )  # fmt: skip
    return made, low, unit


@triton.jit
def _add_channels(
    totals, weights, added, fade, VALUE, SCALE, LOWEST, start, count, stride, filled, groups,
    WIDTH: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr, MODE: tl.constexpr,
    GROUP: tl.constexpr, PLANE: tl.constexpr, ASM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Add a tile of values by channel; one group for all entries is left to `_unfold`."""
    total = totals[0] * fade[:, None]
    if MODE == FOLD and GROUP > 0:
        tile = channel_values(
            tl.full([total.shape[0], PLANE], 0.0, tl.float32), weights, VALUE, SCALE, LOWEST, start, count, stride,
            filled, groups, WIDTH, BN, BITS, ROOM, MODE, GROUP, PLANE, ASM, KIND,
        )  # fmt: skip
        line = tl.arange(0, PLANE)
        scale, centre = group(SCALE, LOWEST, line * groups + start // GROUP, line < WIDTH, BITS)
        total += tile * scale[None, :] + tl.sum(added, 1)[:, None] * centre[None, :]
    else:
        total = channel_values(
            total, weights, VALUE, SCALE, LOWEST, start, count, stride, filled, groups,
            WIDTH, BN, BITS, ROOM, MODE, GROUP, PLANE, ASM, KIND,
        )  # fmt: skip
    return (total,)


@triton.jit
def _unfold(totals, mass, SCALE, LOWEST, groups, WIDTH: tl.constexpr, BITS: tl.constexpr):
    """Values by channel whose one group is all entries: its scale and middle, once."""
    line = tl.arange(0, totals[0].shape[1])
    scale, centre = group(SCALE, LOWEST, line * groups, line < WIDTH, BITS)
    return (totals[0] * scale[None, :] + mass[:, None] * centre[None, :],)


@triton.jit
def _store(
    OUT, LSE, totals, unit, low, high, mass, VECTOR, slot, rows, WIDTH: tl.constexpr, ROOM: tl.constexpr,
    HAS: tl.constexpr,
):  # fmt: skip
    """Write what a span adds: its normalised output, and the logarithm to base 2 of its sum."""
    row, word = tl.arange(0, totals[0].shape[0]), tl.arange(0, totals[0].shape[1])
    # a row that sees nothing of the span gets zeros
    empty = mass == 0.0
    whole = tl.where(empty, 1.0, mass)
    tl.store(LSE + slot * rows + row, tl.where(empty, -float("inf"), high + tl.log2(whole)), mask=row < rows)
    for i in tl.static_range(ROOM):
        at = ROOM * word + i
        made = (totals[i] * unit + low[:, None]) / whole[:, None]
        if HAS:
            made *= tl.load(VECTOR + at, mask=at < WIDTH, other=0.0).to(tl.float32)[None, :]
        there = (row < rows)[:, None] & (at < WIDTH)[None, :]
        tl.store(OUT + (slot * rows + row[:, None]) * WIDTH + at[None, :], made, mask=there)


@triton.jit
def packed_spans(
    QUERY, KEY, KEY_SCALE, KEY_LOWEST, KEY_VECTOR, VALUE, VALUE_SCALE, VALUE_LOWEST, VALUE_VECTOR, BIAS, ORDER,
    OUT, LSE, factor, cap, heads, rows, share, count, tiles, first, spans,
    key_batch, key_head, key_line, key_filled, key_groups, key_scales,
    value_batch, value_head, value_line, value_filled, value_groups, value_scales,
    bias_batch, bias_key, bias_head, bias_query, bias_entry,
    WIDTH: tl.constexpr, BG: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
    KEY_BITS: tl.constexpr, KEY_ROOM: tl.constexpr, KEY_CHANNEL: tl.constexpr, KEY_MODE: tl.constexpr,
    KEY_GROUP: tl.constexpr, KEY_PLANE: tl.constexpr, KEY_HAS: tl.constexpr,
    VALUE_BITS: tl.constexpr, VALUE_ROOM: tl.constexpr, VALUE_CHANNEL: tl.constexpr, VALUE_MODE: tl.constexpr,
    VALUE_GROUP: tl.constexpr, VALUE_PLANE: tl.constexpr, VALUE_HAS: tl.constexpr,
    BIASED: tl.constexpr, ORDERED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One span of entries for all query rows of one key head; `launch.py` says what sizes and strides there are."""
    KIND: tl.constexpr = QUERY.dtype.element_ty
    PLACES: tl.constexpr = KEY_ROOM if KEY_CHANNEL else (VALUE_ROOM if VALUE_CHANNEL else 1)
    KEY_PLANES: tl.constexpr = 1 if KEY_CHANNEL else KEY_ROOM
    VALUE_PLANES: tl.constexpr = 1 if VALUE_CHANNEL else VALUE_ROOM
    span, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    KEY += pair // heads * key_batch + pair % heads * key_head
    VALUE += pair // heads * value_batch + pair % heads * value_head
    BIAS += pair // heads * bias_batch + pair % heads * bias_key
    KS, KL = KEY_SCALE + pair * key_scales, KEY_LOWEST + pair * key_scales
    VS, VL = VALUE_SCALE + pair * value_scales, VALUE_LOWEST + pair * value_scales
    raw, zero = _queries(
        QUERY + pair * rows * WIDTH, KEY_VECTOR + pair * WIDTH, rows, WIDTH, BG, KEY_PLANES, KEY_PLANE, KEY_HAS
    )
    query = _cast(raw, KEY_PLANES, KIND)
    if KEY_CHANNEL and KEY_MODE == FOLD and KEY_GROUP == 0:
        query, zero = _fold(raw[0], KS, KL, 0, key_groups, factor, WIDTH, KEY_BITS, KIND)
    totals = _nothing(BG, VALUE_PLANE, VALUE_PLANES)
    high = tl.full([BG], -1e30, tl.float32)
    mass, low = tl.full([BG, BN // PLACES], 0.0, tl.float32), tl.full([BG, BN // PLACES], 0.0, tl.float32)
    unit = tl.cast(1e-30 if tl.float16 == KIND and VALUE_MODE == FOLD and not VALUE_CHANNEL else 1.0, tl.float32)
    for start in tl.range(span * tiles * BN, tl.minimum((span + 1) * tiles * BN, count), BN, num_stages=STAGES):
        entries, seen = _entries(ORDER + pair * count, start, count, BN, PLACES, ORDERED)
        if KEY_CHANNEL and KEY_MODE == FOLD and KEY_GROUP > 0:
            query, zero = _fold(raw[0], KS, KL, start // KEY_GROUP, key_groups, factor, WIDTH, KEY_BITS, KIND)
        scores = _scores(
            query, zero, KEY, KS, KL, entries, seen, start, count, key_line, key_filled, key_groups, factor,
            WIDTH, BN, PLACES, KEY_BITS, KEY_ROOM, KEY_CHANNEL, KEY_MODE, KEY_GROUP, KEY_PLANE, ASM,
        )  # fmt: skip
        scores = _shown(
            scores, BIAS, entries, seen, rows, share, bias_head, bias_query, bias_entry, cap, PLACES, BIASED, CAPPED
        )
        weights, fade, high, mass, added = _weights(scores, high, mass, PLACES)
        if VALUE_CHANNEL:
            totals = _add_channels(
                totals, weights, added, fade, VALUE, VS, VL, start, count, value_line, value_filled, value_groups,
                WIDTH, BN, VALUE_BITS, VALUE_ROOM, VALUE_MODE, VALUE_GROUP, VALUE_PLANE, ASM, KIND,
            )  # fmt: skip
        else:
            totals, low, unit = _add_tokens(
                totals, low, unit, weights, fade, VALUE, VS, VL, entries, seen, value_line, value_groups,
                WIDTH, PLACES, VALUE_BITS, VALUE_ROOM, VALUE_MODE, VALUE_GROUP, VALUE_PLANE, ASM, KIND,
            )  # fmt: skip
    mass, low = tl.sum(mass, 1), tl.sum(low, 1)
    if VALUE_CHANNEL and VALUE_MODE == FOLD and VALUE_GROUP == 0:
        totals = _unfold(totals, mass, VS, VL, value_groups, WIDTH, VALUE_BITS)
    _store(
        OUT, LSE, totals, unit, low, high, mass, VALUE_VECTOR + pair * WIDTH, pair * spans + first + span, rows,
        WIDTH, VALUE_PLANES, VALUE_HAS,
    )  # fmt: skip


@triton.jit
def join_spans(PARTS, PART_LSE, OUT, LSE, rows, spans, WIDTH: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr):
    """Join the spans of one query row by their log-sum-exp."""
    row, slot, line = tl.program_id(0).to(tl.int64), tl.arange(0, BN), tl.arange(0, WIDE)
    base = row // rows * spans * rows + row % rows
    high, mass = tl.cast(-1e30, tl.float32), tl.cast(0.0, tl.float32)
    total = tl.full([WIDE], 0.0, tl.float32)
    for start in range(0, spans, BN):
        there = start + slot < spans
        at = base + (start + slot) * rows
        known = tl.load(PART_LSE + at, mask=there, other=-float("inf"))
        best = tl.maximum(high, tl.max(known, 0))
        weight, fade = tl.exp2(known - best), tl.exp2(high - best)
        shown = there[:, None] & (line < WIDTH)[None, :]
        parts = tl.load(PARTS + at[:, None] * WIDTH + line[None, :], mask=shown, other=0.0)
        total = total * fade + tl.sum(parts * weight[:, None], 0)
        mass = mass * fade + tl.sum(weight, 0)
        high = best
    whole = tl.where(mass == 0.0, 1.0, mass)
    tl.store(OUT + row * WIDTH + line, (total / whole).to(OUT.dtype.element_ty), mask=line < WIDTH)
    tl.store(LSE + row, tl.where(mass == 0.0, -float("inf"), (high + tl.log2(whole)) / LOG2E))
