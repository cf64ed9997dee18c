"""Quantising: one pass without loops, so that registers, shuffles and the width of loads are what there is to hold."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.aot.case import Case, Expect
from vlm_eff.kernels.quantise import launch


def _call(
    bits: int, axis: str, group: int, width: int = 128, dtype: torch.dtype = torch.bfloat16, shrink: float = 1.0
) -> Callable[[], object]:
    x = torch.zeros(1, 2, 512, width, dtype=dtype)
    return lambda: launch._launch(x, None, None, None, bits, axis, group, shrink)


# a thread holds whole groups of its channels: neither extremes nor packing cross threads
_CHANNEL = {"channel_groups_kernel": Expect(needs=("LDG",), forbids=("SHFL",))}
_TOKEN = {"token_groups_kernel": Expect(needs=("LDG.128",))}

CASES = {
    "channel_2bit_g32_d128": Case(_call(2, "channel", 32), _CHANNEL),
    "channel_4bit_g64_d128": Case(_call(4, "channel", 64), _CHANNEL),
    "channel_2bit_g128_d128_fp16": Case(_call(2, "channel", 128, dtype=torch.float16), _CHANNEL, archs=(90,)),
    "channel_4bit_g32_d80": Case(_call(4, "channel", 32, width=80), _CHANNEL, archs=(90,)),
    "channel_8bit_g64_d64_fp32": Case(_call(8, "channel", 64, width=64, dtype=torch.float32), _CHANNEL),
    "channel_1bit_whole_d128": Case(
        _call(1, "channel", 0, shrink=0.5), {**_CHANNEL, "channel_extremes_kernel": Expect(forbids=("SHFL",))}
    ),
    "token_2bit_g32_d128": Case(_call(2, "token", 32), _TOKEN),
    "token_4bit_whole_d80": Case(_call(4, "token", 0, width=80), _TOKEN, archs=(90,)),
    "token_1bit_whole_d256_fp16": Case(_call(1, "token", 0, width=256, dtype=torch.float16, shrink=0.3), _TOKEN),
}
