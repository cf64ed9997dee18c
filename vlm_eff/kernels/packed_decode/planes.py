"""The two products of a tile with packed entries, by the axis that their codes lie along.

Codes that share a word are planes with a stride: word j of a line holds its numbers room * j + i, i < room. A plane is
a shift and a mask of the words; whatever it meets is read with that stride, so that nothing is ever shuffled.
"""

# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005 - the compiler of kernels knows no starred expressions

from __future__ import annotations

import triton
import triton.language as tl

# how the scale of a group meets its codes: none, folded into the other factor of the product, or number by number
NONE = tl.constexpr(0)
FOLD = tl.constexpr(1)
SPREAD = tl.constexpr(2)


@triton.constexpr_function
def middle(bits):
    """The code that stands for 0."""
    return 2 ** (bits - 1) if bits > 1 else 0


@triton.constexpr_function
def down(place, bits, brain):
    """How far codes at bit `place` move down to lie among the last digits of a half type: 10, or 7 of bfloat16.

    Where they may stay, one instruction masks two words.
    """
    digits = 7 if brain else 10
    return min(far for far in (0, 8, place) if far <= place and place - far + bits <= digits)


@triton.jit
def planes(words, BITS: tl.constexpr, ROOM: tl.constexpr, KIND: tl.constexpr, ASM: tl.constexpr):
    """The codes of words [M, N] less their middle, as `ROOM` tensors [M, N] of exact numbers.

    What is left is as often negative as positive, so that sums are no larger than what they are for. Words of 0 bits
    are the numbers themselves.
    """
    made = ()
    if BITS == 0:
        made = (words,)
    elif ASM and BITS == 4 and ROOM == 4 and tl.float16 == KIND:
        made = _four_of_four(words)
    elif ASM and BITS == 4 and ROOM == 4 and tl.bfloat16 == KIND:
        made = _four_of_four_brain(words)
    elif ASM and BITS == 8 and ROOM == 2 and tl.float16 == KIND:
        made = _two_of_eight(words)
    else:
        for i in tl.static_range(ROOM):
            made = made + (_code(words, BITS * i, BITS, KIND),)
    return made


@triton.jit
def _code(words, PLACE: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr):
    """The code at bit `PLACE` of each word, less the middle.

    The bits of a power of two whose last digits are the code: no conversion, and nothing is rounded.
    """
    if tl.float32 == KIND:
        code = (words.to(tl.int32) >> PLACE) & ((1 << BITS) - 1)
        return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + middle(BITS))
    else:
        BRAIN: tl.constexpr = tl.bfloat16 == KIND and BITS < 8
        DOWN: tl.constexpr = down(PLACE, BITS, BRAIN)
        SIZE: tl.constexpr = 1 << (PLACE - DOWN)
        code = (words.to(tl.int16) >> DOWN) & (((1 << BITS) - 1) * SIZE)
        if BRAIN:
            number = (code | 0x4300).to(tl.bfloat16, bitcast=True)
            number = number * (1.0 / SIZE) - (128.0 / SIZE + middle(BITS))
        else:
            number = (code | 0x6400).to(tl.float16, bitcast=True)
            number = (number * (1.0 / SIZE) - (1024.0 / SIZE + middle(BITS))).to(KIND)
        return number


@triton.jit
def _four_of_four(words):
    """Four codes of 4 bits of each word, two words an instruction: an upper half byte is 16 times its code."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 r;
        .reg .b32 s;
        shr.u32 r, $4, 8;
        mov.b32 s, 0x64006400;
        lop3.b32 $0, $4, 0x000f000f, s, 0xea;
        lop3.b32 $1, $4, 0x00f000f0, s, 0xea;
        lop3.b32 $2, r, 0x000f000f, s, 0xea;
        lop3.b32 $3, r, 0x00f000f0, s, 0xea;
        mov.b32 s, 0x64086408;
        sub.rn.f16x2 $0, $0, s;
        sub.rn.f16x2 $2, $2, s;
        mov.b32 r, 0x2c002c00;
        mov.b32 s, 0xd480d480;
        fma.rn.f16x2 $1, $1, r, s;
        fma.rn.f16x2 $3, $3, r, s;
        }""",
        "=&r,=&r,=&r,=&r,r",
        [words],
        dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def _four_of_four_brain(words):
    """The same in bfloat16, whose last seven digits hold no upper half byte."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 r;
        .reg .b32 s;
        mov.b32 s, 0x43004300;
        lop3.b32 $0, $4, 0x000f000f, s, 0xea;
        shr.u32 r, $4, 4;
        lop3.b32 $1, r, 0x000f000f, s, 0xea;
        shr.u32 r, $4, 8;
        lop3.b32 $2, r, 0x000f000f, s, 0xea;
        shr.u32 r, $4, 12;
        lop3.b32 $3, r, 0x000f000f, s, 0xea;
        mov.b32 r, 0x3f803f80;
        mov.b32 s, 0xc308c308;
        fma.rn.bf16x2 $0, $0, r, s;
        fma.rn.bf16x2 $1, $1, r, s;
        fma.rn.bf16x2 $2, $2, r, s;
        fma.rn.bf16x2 $3, $3, r, s;
        }""",
        "=&r,=&r,=&r,=&r,r",
        [words],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def _two_of_eight(words):
    """Two codes of 8 bits of each word."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 r;
        .reg .b32 s;
        shr.u32 r, $2, 8;
        mov.b32 s, 0x64006400;
        lop3.b32 $0, $2, 0x00ff00ff, s, 0xea;
        lop3.b32 $1, r, 0x00ff00ff, s, 0xea;
        mov.b32 s, 0x64806480;
        sub.rn.f16x2 $0, $0, s;
        sub.rn.f16x2 $1, $1, s;
        }""",
        "=&r,=&r,r",
        [words],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def group(SCALE, LOWEST, at, seen, BITS: tl.constexpr):
    """Scale of groups at `at` and the value of their middle code, in float32; 0 where nothing is seen."""
    scale = tl.load(SCALE + at, mask=seen, other=0.0).to(tl.float32)
    return scale, tl.load(LOWEST + at, mask=seen, other=0.0).to(tl.float32) + scale * middle(BITS)


@triton.jit
def channel_scores(
    query, zero, KEY, SCALE, LOWEST, start, count, stride, filled, groups, factor,
    WIDTH: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr, MODE: tl.constexpr,
    GROUP: tl.constexpr, PLANE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scores [BG, N] for each place in the words [Dh, N] of keys by channel, from entry `start` on."""
    kind: tl.constexpr = query.dtype
    line, word = tl.arange(0, PLANE), start // ROOM + tl.arange(0, BN // ROOM)
    there = (line < WIDTH)[:, None] & (word < filled)[None, :]
    words = tl.load(KEY + line[:, None] * stride + word[None, :], mask=there, other=0)
    codes = planes(words, BITS, ROOM, tl.float32 if MODE == SPREAD else kind, ASM)
    made = ()
    for i in tl.static_range(ROOM):
        if MODE == SPREAD:
            if i == 0 or GROUP % ROOM != 0:
                at = ROOM * word + i
                there = (line < WIDTH)[:, None] & (at < count)[None, :]
                scale, centre = group(SCALE, LOWEST, line[:, None] * groups + (at // GROUP)[None, :], there, BITS)
            number = (codes[i] * scale + centre).to(kind)
            made = made + (tl.dot(query, number, input_precision="ieee") * factor,)
        else:
            made = made + (tl.dot(query, codes[i], input_precision="ieee") + zero[:, None],)
    return made


@triton.jit
def token_scores(
    query, zero, KEY, SCALE, LOWEST, row, seen, stride, groups, factor,
    WIDTH: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr, MODE: tl.constexpr, GROUP: tl.constexpr,
    PLANE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scores [BG, N] of the entries `row` [N] of keys by token; query: [BG, PLANE] for each place in a word."""
    kind: tl.constexpr = query[0].dtype
    word = tl.arange(0, PLANE)
    there = (word < WIDTH // ROOM)[:, None] & seen[None, :]
    words = tl.load(KEY + word[:, None] + row[None, :] * stride, mask=there, other=0)
    codes = planes(words, BITS, ROOM, tl.float32 if MODE == SPREAD else kind, ASM)
    made = tl.full([query[0].shape[0], row.shape[0]], 0.0, tl.float32)
    for i in tl.static_range(ROOM):
        number = codes[i]
        if MODE == SPREAD:
            if i == 0 or GROUP % ROOM != 0:
                at = row[None, :] * groups + ((ROOM * word + i) // GROUP)[:, None]
                scale, centre = group(SCALE, LOWEST, at, there, BITS)
            number = (number * scale + centre).to(kind)
        made = tl.dot(query[i], number, made, input_precision="ieee")
    if MODE == FOLD:
        scale, centre = group(SCALE, LOWEST, row, seen, BITS)
        made = made * (scale * factor)[None, :] + zero[:, None] * (centre * factor)[None, :]
    else:
        made = made * factor
    return made


@triton.jit
def channel_values(
    total, weights, VALUE, SCALE, LOWEST, start, count, stride, filled, groups,
    WIDTH: tl.constexpr, BN: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr, MODE: tl.constexpr,
    GROUP: tl.constexpr, PLANE: tl.constexpr, ASM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """`total` [BG, Dh] and what the words [N, Dh] of values by channel add, by weights [BG, N] for each place."""
    line, word = tl.arange(0, PLANE), start // ROOM + tl.arange(0, BN // ROOM)
    there = (line < WIDTH)[None, :] & (word < filled)[:, None]
    words = tl.load(VALUE + line[None, :] * stride + word[:, None], mask=there, other=0)
    codes = planes(words, BITS, ROOM, tl.float32 if MODE == SPREAD else KIND, ASM)
    for i in tl.static_range(ROOM):
        number = codes[i]
        if MODE == SPREAD:
            if i == 0 or GROUP % ROOM != 0:
                at = ROOM * word + i
                there = (line < WIDTH)[None, :] & (at < count)[:, None]
                scale, centre = group(SCALE, LOWEST, line[None, :] * groups + (at // GROUP)[:, None], there, BITS)
            number = (number * scale + centre).to(KIND)
        total = tl.dot(weights[i].to(KIND), number, total, input_precision="ieee")
    return total


@triton.jit
def token_values(
    totals, weight, VALUE, SCALE, LOWEST, row, seen, stride, groups,
    WIDTH: tl.constexpr, BITS: tl.constexpr, ROOM: tl.constexpr, MODE: tl.constexpr, GROUP: tl.constexpr,
    PLANE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """`totals`, [BG, PLANE] for each place in a word, and what the entries `row` [N] by weights [BG, N] add to them."""
    kind: tl.constexpr = weight.dtype
    word = tl.arange(0, PLANE)
    there = seen[:, None] & (word < WIDTH // ROOM)[None, :]
    words = tl.load(VALUE + row[:, None] * stride + word[None, :], mask=there, other=0)
    codes = planes(words, BITS, ROOM, tl.float32 if MODE == SPREAD else kind, ASM)
    made = ()
    for i in tl.static_range(ROOM):
        number = codes[i]
        if MODE == SPREAD:
            if i == 0 or GROUP % ROOM != 0:
                at = row[:, None] * groups + ((ROOM * word + i) // GROUP)[None, :]
                scale, centre = group(SCALE, LOWEST, at, there, BITS)
            number = (number * scale + centre).to(kind)
        made = made + (tl.dot(weight, number, totals[i], input_precision="ieee"),)
    return made
