"""Column sums of causal attention: products and exponentials, little else."""

from __future__ import annotations

from functools import partial

import torch

from tests.aot.case import TENSOR_CORES, Case, Expect
from vlm_eff.kernels.column_scores import launch

READS = {arch: (TENSOR_CORES[arch], "LDGSTS.128", "MUFU.EX2") for arch in TENSOR_CORES}


def _call(width: int, dtype: torch.dtype = torch.bfloat16, looks: bool = False, causal: bool = True) -> object:
    """All rows of a prompt over all keys."""
    query, key = torch.empty(1, 8, 4096, width, dtype=dtype), torch.empty(1, 2, 4096, width, dtype=dtype)
    mask = torch.ones(1, 1, 4096, 4096, dtype=torch.bool) if looks else None
    return launch._launch(query, key, None, None, mask, None, None, 0.1, 0.0, causal, True)


# the tile of the second pass is the same everywhere; its first loop is on the diagonal, its second below it
CAUSAL = {
    "lse_kernel": Expect(needs=READS),
    "scores_kernel": Expect(needs=READS, elements=128 * 64, budget=(24.0, 14.5)),
}
HALF = {"lse_kernel": Expect(needs=READS), "scores_kernel": Expect(needs=READS)}

CASES = {
    "d64": Case(partial(_call, 64), CAUSAL),
    "d72 tower": Case(partial(_call, 72, causal=False), HALF, archs=(90,)),
    "d128": Case(partial(_call, 128), CAUSAL),
    "d256": Case(partial(_call, 256), HALF),
    "d128 mask": Case(partial(_call, 128, looks=True), HALF, archs=(90,)),
    "d128 fp32": Case(partial(_call, 128, torch.float32), archs=(90,)),
}
