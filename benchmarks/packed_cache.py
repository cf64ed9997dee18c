"""Decode attention over packed caches, for kernels_cpu.py: against today's ways of reading one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_eff.kernels.format import Format
from vlm_eff.kernels.grouped_attention import attend_groups
from vlm_eff.kernels.packed_decode import PackedPair, packed_decode
from vlm_eff.kernels.quantise import quantise

WIDTH = 128
# (name, entries, H, Hkv): all heads of LLaVA-NeXT, of its Mistral variant, and of Qwen2.5-VL with a video
CACHES = (("L2944 H32", 2944, 32, 32), ("L2944 H32 Hkv8", 2944, 32, 8), ("L8192 H28 Hkv4", 8192, 28, 4))
# (name, bits, group, axis of keys, axis of values)
FORMS = (
    ("int8", 8, None, "channel", "token"),
    ("int4", 4, None, "channel", "token"),
    ("int4 g32", 4, 32, "channel", "token"),
    ("int2 g32", 2, 32, "channel", "token"),
    ("int1", 1, None, "channel", "channel"),
)
Arm = Callable[[], object]


def arms(
    length: int, heads: int, shared: int, dtype: torch.dtype, form: tuple[str, int, int | None, str, str]
) -> Iterator[tuple[str, Arm, str, Arm]]:
    """The form that runs and its name, and each of what it is measured against."""
    _, bits, group, *axes = form
    query = torch.randn(1, heads, 1, WIDTH).to(dtype)
    key, value = (torch.randn(1, shared, length, WIDTH).to(dtype) for _ in range(2))
    made = (
        quantise(one, Format(bits, axis, group, separable=axis == "token" and at == 1 and group is None))  # type: ignore[arg-type]
        for at, (one, axis) in enumerate(zip((key, value), axes, strict=True))
    )
    pair = PackedPair(*made)
    scaling = WIDTH**-0.5

    def run(backend: str) -> Arm:
        return lambda: packed_decode(query, [pair], scaling=scaling, backend=backend)

    def read_back() -> Tensor:
        return attend_groups(query, [(*pair.read(dtype), None)], scaling)[0]

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    yield "torch", run("torch"), "reading the cache back", read_back
    yield "torch", run("torch"), "dense attention over a full cache", dense
    if form[0] in ("int8", "int4") and length < 8192:
        yield "compiled", run("compiled"), "dense attention over a full cache", dense
