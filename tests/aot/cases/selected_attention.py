"""Attention among chosen tokens: the plain launch of a long prompt, and all that may be asked of it at once."""

from __future__ import annotations

from functools import partial

import torch

from tests.aot.case import TENSOR_CORES, Case, Expect
from vlm_eff.kernels.selected_attention import launch
from vlm_eff.kernels.selected_attention.tiles import TABLE

KEPT, PLACES = 500, 1000


def call(width: int, dtype: torch.dtype, *, hard: bool = False) -> object:
    """A launch of one row of two heads; `hard` adds older keys, fillers, padding, a soft cap and logarithms."""
    query = torch.zeros(1, PLACES, 2, width, dtype=dtype).transpose(1, 2)
    key, value = (torch.zeros(1, 1, PLACES + 37 * hard, width, dtype=dtype) for _ in range(2))
    index = torch.arange(0, PLACES, 2)[None]
    valid = torch.ones(1, KEPT, dtype=torch.bool) if hard else None
    first = torch.zeros(1, dtype=torch.long) if hard else None
    return launch._launch(query, key, value, index, valid, first, 0.1, 30.0 if hard else 0.0, hard)


def expect(width: int, budget: tuple[float, ...]) -> dict[str, Expect]:
    """Rows are gathered 16 bytes at a time without passing through registers; products are on tensor cores."""
    tiles = TABLE[86, width, 2]
    needs = {arch: (TENSOR_CORES[arch], "LDGSTS.128") for arch in TENSOR_CORES}
    return {"attend_chosen": Expect(needs=needs, elements=tiles.m * tiles.n, budget=budget)}


# budgets are those of Ampere, which needs most: columns before the last tiles, then the ones with a mask
CASES = {
    "d128": Case(partial(call, 128, torch.bfloat16), expect(128, (19.0, 22.0))),
    "d64": Case(partial(call, 64, torch.float16), expect(64, (13.0, 16.0))),
    "d80 with everything": Case(partial(call, 80, torch.bfloat16, hard=True), expect(96, (42.0, 46.0))),
    "d256": Case(partial(call, 256, torch.float16)),
    "d96 single": Case(partial(call, 96, torch.float32), archs=(80, 90)),
}
