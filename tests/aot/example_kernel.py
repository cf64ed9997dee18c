"""Kernels of the tests: a good one, and for each rule one that breaks it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scores_kernel(query, key, out, keys, stride, scale, BM: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over keys of exp2(scale * query . key): a dot and an exponent in a pipelined loop."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.arange(0, WIDTH)
    q = tl.load(query + rows[:, None] * stride + dims[None, :])
    total = tl.full((BM,), 0.0, tl.float32)
    for start in tl.range(0, keys, BN):
        columns = start + tl.arange(0, BN)
        k = tl.load(key + columns[None, :] * stride + dims[:, None], mask=columns[None, :] < keys, other=0.0)
        total += tl.sum(tl.exp2(tl.dot(q, k) * scale), 1)
    tl.store(out + rows, total)
