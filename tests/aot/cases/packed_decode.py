"""Decoding over packed entries: how many instructions a cached number takes, by its layout and how it is unpacked."""

from __future__ import annotations

from functools import partial

import torch

from tests.aot.case import Case, Expect
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.packed_decode import launch
from vlm_eff.kernels.packed_decode.pairs import ExactPair, PackedPair, Pair
from vlm_eff.kernels.quantise import quantise

COUNT = 4096


def call(
    bits: int, key: str = "channel", value: str = "token", group: int | None = None, width: int = 128,
    dtype: torch.dtype = torch.float16, asm: bool = False, hard: bool = False,
) -> object:  # fmt: skip
    """One row of eight query heads over two key heads; `hard` adds a bias, fillers, a soft cap and a second row."""
    query = torch.zeros(1, 8, 1 + hard, width, dtype=dtype)
    zeros = torch.zeros(1, 2, COUNT, width, dtype=dtype)
    segment: Pair = ExactPair(zeros, zeros)
    if bits:
        there = torch.arange(COUNT).expand(1, 2, -1) < COUNT - 9 if hard else None
        forms = (Format(bits, axis, group, separable=axis == "token" and at == 1 and group is None)  # type: ignore[arg-type]
                 for at, axis in enumerate((key, value)))  # fmt: skip
        bias = torch.zeros(1, 1, 1, COUNT) if hard else None
        segment = PackedPair(*(quantise(zeros, form, there) for form in forms), bias)
    tensors: list[torch.Tensor] = []
    layout: list[int] = []
    launch._describe(segment, tensors, layout)
    before, launch.ASM = launch.ASM, asm
    try:
        return launch._launch(query, tensors, layout, 0.1, 30.0 if hard else None)
    finally:
        launch.ASM = before


def case(budget: float | None, entries: int = 128, archs: tuple[int, ...] = (90,), **layout: object) -> Case:
    """Numbers of keys and values in a tile, all products on tensor cores, whole lines copied without registers."""
    width = layout.get("width", 128)
    assert isinstance(width, int)
    # lines of 2 bits and groups of their own are read in smaller pieces
    small = layout.get("hard") or layout.get("group") or layout.get("bits") == 2
    needs = ("HMMA",) if small else ("HMMA", "LDGSTS.128")
    expect = Expect(needs=needs, elements=2 * width * entries, budget=budget)
    return Case(partial(call, **layout), {"packed_spans": expect}, archs)  # type: ignore[arg-type]


BRAIN = torch.bfloat16
# budgets are those of the architecture that needs most. The form in PTX is off until a GPU has compared it bit for bit
# with the other one; what it would take is held here
CASES = {
    "int4": case(6.0, bits=4, archs=(80, 90, 100)),
    "int4 bf16": case(4.7, bits=4, dtype=BRAIN),
    "int4 asm": case(3.3, bits=4, asm=True, archs=(80, 90)),
    "int4 asm bf16": case(3.3, bits=4, asm=True, dtype=BRAIN),
    "int4 asm by channel": case(2.5, bits=4, value="channel", asm=True),
    "int8": case(4.9, bits=8),
    "int8 asm": case(None, bits=8, asm=True),
    "int2": case(None, bits=2, archs=(80, 90, 100)),
    "int2 g32": case(None, bits=2, group=32, entries=64),
    "int1 by channel": case(None, entries=256, bits=1, value="channel"),
    "int4 d80 with everything": case(None, bits=4, key="token", width=80, group=20, hard=True, entries=64),
    "int4 d256": case(None, bits=4, width=256, dtype=BRAIN, archs=(80, 90)),
    "as they are": case(None, entries=64, bits=0, dtype=BRAIN, archs=(80, 90, 100)),
    "as they are d256": case(None, entries=64, bits=0, width=256),
}
