"""`best_partner`: one step of features, several, and a number of features that no step divides; groups; slack."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.aot.case import TENSOR_CORES, Case, Expect
from tests.aot.stub import ARCHITECTURES
from vlm_eff.kernels.bipartite_match import launch
from vlm_eff.kernels.bipartite_match.tiles import STEP, TABLE

HALF = {arch: (opcode, "LDGSTS.128" if arch < 90 else "LDGSTS.128|UTMALDG") for arch, opcode in TENSOR_CORES.items()}

TENSOR_OPS = {arch: (opcode,) for arch, opcode in TENSOR_CORES.items()}


def _call(width: int, dtype: torch.dtype, slack: float = 0.0, grouped: bool = False) -> Callable[[], object]:
    def call() -> object:
        tokens = torch.zeros(2, 577, width, dtype=dtype)
        source, goal = tokens[:, 0::2], tokens[:, 1::2]
        groups = [torch.zeros(2, side.shape[1], dtype=torch.long) if grouped else None for side in (source, goal)]
        return launch._launch(source, goal, *groups, False, slack)

    return call


def _case(
    width: int,
    dtype: torch.dtype,
    *,
    slack: float = 0.0,
    grouped: bool = False,
    archs: tuple[int, ...] = ARCHITECTURES,
) -> Case:
    needs = HALF if dtype != torch.float32 else ("FFMA",)
    if width < 128 and width % 64:
        # one step and a rest: nothing is left to load ahead
        needs = TENSOR_OPS
    tiles = TABLE[90, STEP, 2] if dtype.itemsize == 2 else TABLE[86, STEP, 4]
    elements = tiles.m * tiles.n
    return Case(
        _call(width, dtype, slack, grouped), {"best_partner_kernel": Expect(needs=needs, elements=elements)}, archs
    )


CASES = {
    "c64": _case(64, torch.bfloat16),
    "c64_groups": _case(64, torch.float16, grouped=True, archs=(90,)),
    "c1024_slack": _case(1024, torch.float16, slack=1e-6),
    "c72": _case(72, torch.bfloat16),
    "c1024_float32": _case(1024, torch.float32, slack=1e-6, grouped=True, archs=(90,)),
}
