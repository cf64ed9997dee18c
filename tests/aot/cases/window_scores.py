"""Scores of a window of rows: as many keys in flight as memory needs, no spills, tensor cores where tiles allow."""

from __future__ import annotations

from functools import partial

import torch

from tests.aot.case import TENSOR_CORES, Case, Expect
from vlm_eff.kernels.window_scores import launch

READS = {arch: (TENSOR_CORES[arch], "LDGSTS.128", "MUFU.EX2") for arch in TENSOR_CORES}


def _call(width: int, dtype: torch.dtype = torch.bfloat16, looks: bool = False, rows: int = 32) -> object:
    """Grouped-query attention of a language model; causal rows, or rows that a mask of the model's goes with."""
    query, key = torch.empty(2, 14, rows, width, dtype=dtype), torch.empty(2, 2, 4096, width, dtype=dtype)
    column = None if looks else torch.zeros(2, rows, dtype=torch.long)
    mask = torch.ones(2, 1, rows, 4096, dtype=torch.bool) if looks else None
    return launch._launch_scores(query, key, column, None, mask, None, None, 0.1, 0.0, not looks, "sum", True, 4)


HALF = {"lse_kernel": Expect(needs=READS), "scores_kernel": Expect(needs=READS)}
PLAIN = {"lse_kernel": Expect(needs=("LDGSTS.128",)), "scores_kernel": Expect(needs=("LDGSTS.128",))}

CASES = {
    "d64": Case(partial(_call, 64), HALF),
    "d80": Case(partial(_call, 80), HALF),
    "d128": Case(partial(_call, 128), HALF),
    "d256": Case(partial(_call, 256), HALF),
    "d128 mask": Case(partial(_call, 128, looks=True), HALF, archs=(90,)),
    "d128 fp32": Case(partial(_call, 128, torch.float32), PLAIN, archs=(90,)),
    "d256 fp32": Case(partial(_call, 256, torch.float32), PLAIN, archs=(90,)),
}
