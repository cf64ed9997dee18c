"""Kernels that quantise and pack in one pass over the entries.

Bit for bit what the definition makes: quotients are rounded to the nearest, products and sums are not fused (see the
launcher), statistics are rounded to their smaller types on their bits, since Triton's interpreter cuts off what it
casts to bfloat16, and codes are rounded half to even by adding a number at which the unit is the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

# how numbers lie in memory: float16, and bfloat16, of which kernels read and write the bits; float32 is anything else
HALF = tl.constexpr(16)
BRAIN = tl.constexpr(17)


@triton.jit
def _extremes(value, known, ALL: tl.constexpr, AXIS: tl.constexpr):
    """Lowest and highest known number along an axis; NaN where one is NaN, inf and -inf where none is known.

    ALL: every number is known. Numbers that are not known were read as 0.
    """
    # a reduction may or may not pass a NaN on; its bits are above those of infinity
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    low = value
    high = value
    if not ALL:
        bits = tl.where(known, bits, 0)
        low = tl.where(known, value, float("inf"))
        high = tl.where(known, value, float("-inf"))
    spoilt = tl.max(bits, AXIS) > 0x7F800000
    low = tl.where(spoilt, float("nan"), tl.min(low, AXIS))
    high = tl.where(spoilt, float("nan"), tl.max(high, AXIS))
    return low, high


@triton.jit
def _statistics(low, high, shrink, TOP: tl.constexpr, SHRINK: tl.constexpr, SCALE: tl.constexpr, LOWEST: tl.constexpr):
    """Step and lowest value of groups in float32, as they are stored: see `rounding.statistics`."""
    empty = low > high
    low = tl.where(empty, 0.0, low)
    high = tl.where(empty, 0.0, high)
    if SHRINK:
        middle = (low + high) * 0.5
        half = (high - low) * 0.5 * shrink
        low = middle - half
        high = middle + half
    lowest = low
    if LOWEST == HALF:
        near = low.to(tl.float16)
        bits = near.to(tl.int16, bitcast=True)
        # one step down is more on the bits of a negative number and less on those of a positive one
        down = tl.where(near == 0.0, -32767, tl.where(near > 0.0, bits - 1, bits + 1)).to(tl.int16)
        bits = tl.where(near.to(tl.float32) > low, down, bits)
        lowest = bits.to(tl.float16, bitcast=True).to(tl.float32)
    if LOWEST == BRAIN:
        bits = low.to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits + 0xFFFF, bits) & -65536
        lowest = tl.where(low == low, bits.to(tl.float32, bitcast=True), low)
    step = tl.div_rn(high - lowest, tl.full(low.shape, TOP, tl.float32))
    scale = tl.where(step == 0.0, 1.0, step)
    if SCALE == BRAIN:
        bits = (scale.to(tl.int32, bitcast=True) + 0xFFFF) & -65536
        scale = tl.where(scale == scale, bits.to(tl.float32, bitcast=True), scale)
    return scale, lowest


@triton.jit
def _codes(value, lowest, scale, AXIS: tl.constexpr, TOP: tl.constexpr, SHRINK: tl.constexpr, FUSED: tl.constexpr):
    """Codes int32 of numbers, whose groups lie along an axis that lowest values and steps lack; those are finite.

    FUSED: the step has the 8 bits of a bfloat16. Then no quotient lies near the middle between two floats, and one
    correction of the product with the inverse makes it the rounded quotient, which takes 12 instructions otherwise.
    """
    above = value - tl.expand_dims(lowest, AXIS)
    if FUSED:
        # a power of two brings the step near 1, so that nothing overflows and no bit is lost
        exponent = scale.to(tl.int32, bitcast=True) & 0x7F800000
        factor = tl.maximum(0x7F000000 - exponent, 0x00800000).to(tl.float32, bitcast=True)
        near = scale * factor
        inverse = tl.expand_dims(tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), near), AXIS)
        above = above * tl.expand_dims(factor, AXIS)
        steps = above * inverse
        steps = tl.fma(tl.fma(-steps, tl.expand_dims(near, AXIS), above), inverse, steps)
    else:
        steps = tl.div_rn(above, tl.broadcast_to(tl.expand_dims(scale, AXIS), above.shape))
    if SHRINK:
        steps = tl.minimum(tl.maximum(steps, 0.0), TOP)
    # 1.5 * 2^23: there float32 counts in ones, and the sum rounds half to even
    return (steps + 12582912.0).to(tl.int32, bitcast=True) & TOP


@triton.jit
def _store(at, value, mask, KIND: tl.constexpr):
    """Store float32 numbers as the type that they were rounded to."""
    if KIND == BRAIN:
        tl.store(at, (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16), mask=mask)
    else:
        tl.store(at, value.to(at.dtype.element_ty), mask=mask)


@triton.jit
def _load(at, mask, KIND: tl.constexpr):
    """Read numbers of such a type as float32; 0 where there are none."""
    if KIND == BRAIN:
        value = (tl.load(at, mask=mask, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def token_groups_kernel(
    x, channel, valid, codes, scale, lowest,
    heads, count, stride_batch, stride_head, stride_token, shrink,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, GROUPS: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, MEMBERS: tl.constexpr, ALL: tl.constexpr, FUSED: tl.constexpr,
    SEPARABLE: tl.constexpr, VALID: tl.constexpr, SHRINK: tl.constexpr,
    KIND: tl.constexpr, SCALE: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """Groups along the width of an entry: a program takes ROWS groups of one row and head, a row of its tile each.

    ALL: groups fill their rows of the tile, and the width
    """
    TOP: tl.constexpr = 2**BITS - 1
    ROOM: tl.constexpr = 8 // BITS
    PER: tl.constexpr = BYTES if GROUPS == 1 else SIZE // ROOM
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = row // GROUPS
    group = row % GROUPS
    member = tl.arange(0, MEMBERS)
    place = group[:, None] * SIZE + member[None, :]
    there = (token < count)[:, None]
    if not ALL:
        there = there & (member < SIZE)[None, :] & (place < WIDTH)
    known = there
    if VALID:
        known = known & (tl.load(valid + head * count + token, mask=token < count, other=0) != 0)[:, None]
    x += (head // heads) * stride_batch + (head % heads) * stride_head
    value = _load(x + token.to(tl.int64)[:, None] * stride_token + place, there, KIND)
    if SEPARABLE:
        divisor = _load(channel + head * WIDTH + place, there, KIND)
        value = tl.div_rn(value, tl.where(there, divisor, 1.0))
    # rows behind the last token are not stored
    low, high = _extremes(value, known, ALL and not VALID, 1)
    step, least = _statistics(low, high, shrink, TOP, SHRINK, SCALE, LOWEST)
    at = head * count * GROUPS + row
    _store(scale + at, step, token < count, SCALE)
    _store(lowest + at, least, token < count, LOWEST)
    code = _codes(value, least, step, 1, TOP, SHRINK, FUSED)
    if VALID or not ALL:
        code = tl.where(known, code, 0)
    if ROOM > 1:
        shift = tl.arange(0, ROOM)[None, None, :] * BITS
        code = tl.sum(tl.reshape(code, (ROWS, MEMBERS // ROOM, ROOM)) << shift, 2)
    # a group whose step is not finite has no codes
    code = tl.where((step < float("inf"))[:, None], code, 0)
    k = tl.arange(0, MEMBERS // ROOM)
    byte = group[:, None] * PER + k[None, :]
    kept = (token < count)[:, None]
    if not ALL:
        kept = kept & (k < PER)[None, :] & (byte < BYTES)
    codes += head * count * BYTES
    tl.store(codes + token[:, None] * BYTES + byte, code.to(tl.uint8), mask=kept)


@triton.jit
def _entries(
    x, order, valid, group, first, start, head, heads, count, groups, wide, channel,
    stride_batch, stride_head, stride_token, SIZE: tl.constexpr, MEMBERS: tl.constexpr,
    ORDERED: tl.constexpr, VALID: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Numbers of pieces [MEMBERS, PIECES, CHANNELS] that begin at place `first` of their groups, which are valid, and
    which are no repetition.

    Places behind the end of a group show its last number again, which changes neither extreme.
    """
    some = (group < groups)[None, :]
    member = first[None, :] + tl.arange(0, MEMBERS)[:, None]
    place = group[None, :] * SIZE + member
    there = some & (place < count)
    end = count
    if SIZE > 0:
        there = there & (member < SIZE)
        end = tl.minimum(group * SIZE + SIZE, count)[None, :]
    token = tl.minimum(place, end - 1)
    if ORDERED:
        token = tl.load(order + head * count + token, mask=some, other=0)
    known = some
    if VALID:
        known = tl.load(valid + head * count + token, mask=some, other=0) != 0
    x += (head // heads) * stride_batch + (head % heads) * stride_head
    if ORDERED:
        offset = token.to(tl.int64) * stride_token
    else:
        # offsets inside the tile are short numbers
        x += start.to(tl.int64) * stride_token
        offset = (token - start) * stride_token
    value = _load(x + offset[:, :, None] + channel[None, None, :], some[:, :, None] & wide, KIND)
    return value, known[:, :, None], (known & there)[:, :, None]


@triton.jit
def channel_extremes_kernel(
    x, order, valid, low, high, heads, count, width, groups, pieces, stride_batch, stride_head, stride_token,
    SIZE: tl.constexpr, MEMBERS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr,
    ORDERED: tl.constexpr, VALID: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Lowest and highest number of each piece of MEMBERS entries, where the groups of a channel are several pieces."""
    piece = tl.program_id(0) + tl.arange(0, 1)
    # told that no more channels lie side by side, a thread takes these with all their members: no shuffles
    channel = tl.max_contiguous(tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), SIDE)
    head = tl.program_id(2).to(tl.int64)
    group = piece // pieces
    first = piece % pieces * MEMBERS
    start = tl.program_id(0) // pieces * SIZE + tl.program_id(0) % pieces * MEMBERS
    wide = (channel < width)[None, None, :]
    value, known, _ = _entries(
        x, order, valid, group, first, start, head, heads, count, groups, wide, channel,
        stride_batch, stride_head, stride_token, SIZE, MEMBERS, ORDERED, VALID, KIND,
    )  # fmt: skip
    least, most = _extremes(value, known, not VALID, 0)
    at = (head * groups * pieces + piece)[:, None] * width + channel[None, :]
    tl.store(low + at, least, mask=(channel < width)[None, :])
    tl.store(high + at, most, mask=(channel < width)[None, :])


@triton.jit
def channel_groups_kernel(
    x, order, valid, codes, scale, lowest,
    heads, count, width, groups, pieces, bytes, stride_batch, stride_head, stride_token, shrink,
    SIZE: tl.constexpr, BITS: tl.constexpr, PIECES: tl.constexpr, MEMBERS: tl.constexpr, CHANNELS: tl.constexpr,
    SIDE: tl.constexpr, GIVEN: tl.constexpr, FUSED: tl.constexpr, ORDERED: tl.constexpr, VALID: tl.constexpr,
    SHRINK: tl.constexpr, KIND: tl.constexpr, SCALE: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """Groups along the entries of a channel: a program takes PIECES times MEMBERS entries of CHANNELS channels.

    SIZE:  entries of a group, 0 where there is one group, whose size no kernel is compiled for
    SIDE:  channels that a thread takes
    GIVEN: a group is several pieces, and its step and lowest value are read; else it is one and they are written
    """
    TOP: tl.constexpr = 2**BITS - 1
    ROOM: tl.constexpr = 8 // BITS
    piece = tl.program_id(0) * PIECES + tl.arange(0, PIECES)
    # told that no more channels lie side by side, a thread takes these with all their members: no shuffles
    channel = tl.max_contiguous(tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), SIDE)
    head = tl.program_id(2).to(tl.int64)
    group = piece // pieces
    first = piece % pieces * MEMBERS
    start = tl.program_id(0) * PIECES // pieces * SIZE + tl.program_id(0) * PIECES % pieces * MEMBERS
    wide = (channel < width)[None, None, :]
    value, known, real = _entries(
        x, order, valid, group, first, start, head, heads, count, groups, wide, channel,
        stride_batch, stride_head, stride_token, SIZE, MEMBERS, ORDERED, VALID, KIND,
    )  # fmt: skip
    line = head * width + channel
    at = line[None, :] * groups + group[:, None]
    kept = (group < groups)[:, None] & (channel < width)[None, :]
    if GIVEN:
        step = _load(scale + at, kept, SCALE)
        least = _load(lowest + at, kept, LOWEST)
    else:
        least, most = _extremes(value, known, not VALID, 0)
        step, least = _statistics(least, most, shrink, TOP, SHRINK, SCALE, LOWEST)
        _store(scale + at, step, kept, SCALE)
        _store(lowest + at, least, kept, LOWEST)
    code = tl.where(real, _codes(value, least, step, 0, TOP, SHRINK, FUSED), 0)
    if ROOM > 1:
        shift = tl.arange(0, ROOM)[None, :, None, None] * BITS
        code = tl.sum(tl.reshape(code, (MEMBERS // ROOM, ROOM, PIECES, CHANNELS)) << shift, 1)
    # a group whose step is not finite has no codes
    code = tl.where((step < float("inf"))[None, :, :], code, 0)
    k = (first // ROOM)[None, :] + tl.arange(0, MEMBERS // ROOM)[:, None]
    byte = group[None, :] * (SIZE // ROOM) + k
    fits = (group < groups)[None, :] & (byte < bytes)
    if SIZE > 0:
        fits = fits & (k < SIZE // ROOM)
    codes += head * width * bytes
    tl.store(
        codes + (channel * bytes)[None, None, :] + byte[:, :, None], code.to(tl.uint8), mask=fits[:, :, None] & wide
    )
