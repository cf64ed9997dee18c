"""The test's own kernel: shows how cases are written, and proves the harness where no operation is involved."""

from __future__ import annotations

import torch

from tests.aot.case import TENSOR_CORES, Case, Expect
from tests.aot.example_kernel import scores_kernel

BM, BN, WIDTH = 128, 64, 128


def launch(keys: int = 1000, block: int = BN, rows: int = BM, warps: int = 8, stages: int = 3) -> torch.Tensor:
    """Launch the kernel on small tensors of the CPU."""
    query, key = (torch.zeros(length, WIDTH, dtype=torch.bfloat16) for length in (2 * rows, keys))
    out = torch.empty(2 * rows)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    scores_kernel[(2,)](query, key, out, keys, query.stride(0), 0.1, BM=rows, BN=block, WIDTH=WIDTH, **options)
    return out


CASES = {
    "d128": Case(
        launch,
        {
            "scores_kernel": Expect(
                needs={
                    80: (TENSOR_CORES[80], "LDGSTS.128"),
                    90: (TENSOR_CORES[90], "LDGSTS.128"),
                    100: (TENSOR_CORES[100], "LDGSTS.128"),
                },
                forbids=("I2F",),
                elements=BM * BN,
                budget=12.0,
            )
        },
    )
}
