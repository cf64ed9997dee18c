"""`merge_tokens` and `sum_into`: rows that 16 divides are read and written 16 bytes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.aot.case import Case, Expect
from vlm_eff.kernels.merge import launch


def _call(width: int, dtype: torch.dtype, shared: bool, weighted: bool) -> Callable[[], object]:
    def call() -> object:
        x, into = torch.zeros(2, 577, width, dtype=dtype), torch.zeros(2, 577, dtype=torch.long)
        weight = torch.ones(2, 577) if weighted else None
        return launch._launch(x, into, 300, weight, shared)

    return call


WIDE = Expect(needs=("LDG.128", "STG.128"))
CASES = {
    "mean_c1024": Case(_call(1024, torch.bfloat16, True, True), {"sum_into_kernel": WIDE}),
    "mean_c1024_float32": Case(_call(1024, torch.float32, True, False), {"sum_into_kernel": WIDE}, archs=(90,)),
    "sum_c128": Case(_call(128, torch.float16, False, True), {"sum_into_kernel": WIDE}, archs=(90,)),
    "sum_c72": Case(_call(72, torch.float16, False, False), {"sum_into_kernel": Expect()}, archs=(90,)),
}
