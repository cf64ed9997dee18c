"""Attention over listed blocks, against dense attention and against what else takes such lists."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.sparse_attention import sparse_attention

from .checks import LSE_TOLERANCE, TOLERANCE
from .rivals import fa4, flex, sdpa
from .session import Goal, Session

OP = "sparse_attention"
_BLOCK = 128
# (heads, key heads, width)
_SHAPES = ((4, 4, 128), (7, 1, 128), (4, 4, 64), (4, 2, 72), (4, 4, 80), (4, 4, 96), (2, 1, 256))


def causal_lists(session: Session, heads: int, length: int, density: float, block: int = _BLOCK) -> BlockLists:
    """Random lists of this share of the causal blocks, per head; the first block and the diagonal are always there."""
    side = -(-length // block)
    place = torch.arange(side, device=session.device)
    below = place[:, None] > place[None, :]
    drawn = torch.rand(heads, side, side, generator=session.generator, device=session.device) < density
    full = (drawn | (place == 0)) & below
    part = torch.eye(side, dtype=torch.bool, device=session.device).expand(heads, side, side)
    return BlockLists.of_masks(full[None], part[None], block, block)


def check_values(session: Session) -> None:
    """Outputs and logarithms against float64: widths, groups, odd length, left padding with rows that see nothing."""
    length = session.size(1500, 150)
    for dtype, (heads, key_heads, width) in itertools.product(session.dtypes, _SHAPES):
        query = session.normal(2, heads, length, width, dtype=dtype)
        key, value = (session.normal(2, key_heads, length, width, dtype=dtype) for _ in range(2))
        # padding makes blocks partial: everything is listed in part here, and full blocks are checked below
        side = -(-length // _BLOCK)
        place = torch.arange(side, device=session.device)
        below = place[:, None] >= place[None, :]
        drawn = torch.rand(2, heads, side, side, generator=session.generator, device=session.device) < 0.6
        listed = (drawn | (place[:, None] == place)) & below
        first = torch.tensor([0, 141], dtype=torch.int32, device=session.device)
        name = f"{str(dtype).removeprefix('torch.')} {(heads, key_heads, width)}"
        for case, lists, rule in (
            ("full", causal_lists(session, heads, length, 0.5), Rule()),
            ("padded", BlockLists.of_masks(listed & False, listed, _BLOCK, _BLOCK), Rule(first=first)),
        ):
            _compare(session, f"{name} {case}", (query, key, value), lists, rule)


def _compare(session: Session, name: str, states: tuple[Tensor, Tensor, Tensor], lists: BlockLists, rule: Rule) -> None:
    wide = tuple(state.double() for state in states)
    want, sums = sparse_attention(*wide, lists, rule, return_lse=True, backend="reference")
    dtype = states[0].dtype

    def run(part: int) -> Tensor:
        return sparse_attention(*states, lists, rule, return_lse=True, backend=session.backend)[part]

    session.check(OP, name, lambda: run(0), want, TOLERANCE[dtype])
    session.check(OP, f"{name} lse", lambda: run(1), sums, LSE_TOLERANCE[dtype], absolute=True)


def time_densities(session: Session) -> None:
    """Qwen2.5-VL's shape at 32k, 8k and 2,944 tokens, by density, against dense attention and the same lists."""
    lengths = (32768, 2944) if session.quick else (32768, 8192, 2944)
    # the density of the goal first
    densities = (0.25, 1.0) if session.quick else (0.25, 1.0, 0.5, 0.1)
    (heads, key_heads), width = session.heads(28, 4), 128
    for length in [300] if session.dry else lengths:
        query = session.normal(1, heads, length, width, dtype=torch.bfloat16)
        key, value = (session.normal(1, key_heads, length, width, dtype=torch.bfloat16) for _ in range(2))
        dense = sdpa(query, key, value, causal=True, math=session.dry)
        for density in densities:
            lists = causal_lists(session, heads, length, density)
            rivals = dense | flex(query, key, value, lists, compile=not session.dry)
            rivals |= fa4(query, key, value, lists)
            real = float(lists.density(length).mean())
            wanted = density == 0.25 and length == session.size(32768, 300)
            goals = (Goal(2.5, faster_than="sdpa"), Goal(1.0, faster_than="flex")) if wanted else ()
            session.time(
                OP,
                f"{length} tokens density {density}",
                lambda lists=lists, q=query, k=key, v=value: sparse_attention(
                    q, k, v, lists, Rule(), backend=session.backend
                ),
                rivals,
                flops=2.0 * heads * width * length**2 * real,
                goals=goals,
                more={"density": real},
            )


def time_full_tiles(session: Session) -> None:
    """Every block listed whole: what the hot loop makes of the matrix units."""
    (heads, key_heads), width = session.heads(28, 4), 128
    length = session.size(8192, 256)
    query = session.normal(1, heads, length, width, dtype=torch.bfloat16)
    key, value = (session.normal(1, key_heads, length, width, dtype=torch.bfloat16) for _ in range(2))
    side = length // _BLOCK
    every = torch.ones(1, 1, side, side, dtype=torch.bool, device=session.device)
    lists = BlockLists.of_masks(every, ~every, _BLOCK, _BLOCK)
    rule = Rule(causal=False)
    session.time(
        OP,
        f"{length} tokens full tiles",
        lambda: sparse_attention(query, key, value, lists, rule, backend=session.backend),
        sdpa(query, key, value, causal=False, math=session.dry),
        flops=4.0 * heads * width * length**2,
        goals=(Goal(0.55, share="matmul"),),
    )


STEPS = (check_values, time_densities, time_full_tiles)
