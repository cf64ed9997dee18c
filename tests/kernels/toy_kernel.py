"""A kernel as small as they come, to try dispatch and registration with."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def double_kernel(source, target, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    tl.store(target + place, tl.load(source + place, mask=inside) * 2, mask=inside)
