"""Attention among chosen tokens, against dense attention and against gathering first."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_eff.kernels.selected_attention import selected_attention

from .checks import TOLERANCE
from .rivals import Rivals, sdpa
from .session import Session

OP = "selected_attention"
_SHAPES = ((4, 4, 128), (7, 1, 128), (4, 4, 72))


def chosen(session: Session, batch: int, length: int, keep: float) -> Tensor:
    """Random places to keep, ascending."""
    drawn = torch.rand(batch, length, generator=session.generator, device=session.device)
    return drawn.topk(max(int(length * keep), 1), dim=1).indices.sort(dim=1).values


def check_values(session: Session) -> None:
    """Against float64, with fillers and an odd length."""
    length = session.size(1501, 151)
    for dtype, (heads, key_heads, width) in itertools.product(session.dtypes, _SHAPES):
        query = session.normal(2, heads, length, width, dtype=dtype)
        key, value = (session.normal(2, key_heads, length, width, dtype=dtype) for _ in range(2))
        index = chosen(session, 2, length, 0.4)
        valid = torch.ones_like(index, dtype=torch.bool)
        valid[1, -9:] = False
        for case, fillers in (("", None), (" fillers", valid)):
            want = selected_attention(query.double(), key.double(), value.double(), index, fillers, backend="reference")
            name = f"{str(dtype).removeprefix('torch.')} {(heads, key_heads, width)}{case}"

            def run(states: tuple[Tensor, ...] = (query, key, value, index), f: Tensor | None = fillers) -> Tensor:
                return selected_attention(*states, f, backend=session.backend)

            session.check(OP, name, run, want, TOLERANCE[dtype])


def gathered(query: Tensor, key: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """What a user writes: gather, attend, scatter."""
    q, k, v = (state.index_select(2, index[0]) for state in (query, key, value))
    made = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return torch.zeros_like(query).index_copy_(2, index[0], made)


def time_keeps(session: Session) -> None:
    """LLaVA-NeXT at 2,944 tokens and Qwen2.5-VL at 32k, keeping half and a quarter."""
    for name, (heads, key_heads, full) in {"next": (32, 32, 2944), "qwen": (28, 4, 32768)}.items():
        length = session.size(full, 200)
        heads, key_heads = session.heads(heads, key_heads)
        query = session.normal(1, heads, length, 128, dtype=torch.bfloat16)
        key, value = (session.normal(1, key_heads, length, 128, dtype=torch.bfloat16) for _ in range(2))
        dense = sdpa(query, key, value, causal=True, math=session.dry)
        for keep in (0.5, 0.25):
            index = chosen(session, 1, length, keep)
            count = index.shape[1]
            session.time(
                OP,
                f"{name} {length} keep {keep}",
                lambda q=query, k=key, v=value, i=index: selected_attention(q, k, v, i, backend=session.backend),
                dense | Rivals({"gather, sdpa": lambda q=query, k=key, v=value, i=index: gathered(q, k, v, i)}),
                numbers=2.0 * 128 * count * 2 * (heads + key_heads),
                flops=2.0 * heads * 128 * count**2,
            )


STEPS = (check_values, time_keeps)
