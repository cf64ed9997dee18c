"""A kernel that writes down what the words of packed entries are unpacked to."""

from __future__ import annotations

import triton
import triton.language as tl

from vlm_eff.kernels.packed_decode.planes import planes


@triton.jit
def unpack_kernel(WORDS, OUT, BITS: tl.constexpr, ROOM: tl.constexpr, SIZE: tl.constexpr, ASM: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    made = planes(tl.load(WORDS + at)[:, None], BITS, ROOM, OUT.dtype.element_ty, ASM)
    for i in tl.static_range(ROOM):
        tl.store(OUT + (at * ROOM + i)[:, None], made[i])
