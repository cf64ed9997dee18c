"""Calls of sparse attention that differ in one thing after the other, and what is wrong with an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.kernels.kit import LSE_TOLERANCE, TOLERANCE, normal, relative
from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.sparse_attention import sparse_attention


@dataclass(frozen=True)
class Case:
    """Sizes, lists and rule of a call; tensors are drawn anew each time."""

    dtype: torch.dtype = torch.float32
    width: int = 64
    batch: int = 1
    heads: int = 2
    key_heads: int = 1
    queries: int = 300
    keys: int = 300
    rows: int = 64
    columns: int = 64
    shared: bool = False  # one list for all rows and heads
    single: int = 0  # listed single keys
    causal: bool = True
    first: tuple[int, ...] | None = None
    text: float | None = None  # share of text
    sinks: int = 0
    window: int | None = None
    softcap: float | None = None
    scaling: float | None = None


CASES = {
    "float32": Case(),
    "float16": Case(dtype=torch.float16),
    "cross-modal, padded, behind a cache": Case(
        width=72, batch=2, heads=2, queries=150, first=(37, 100), text=0.1, sinks=4, window=40
    ),
    "regions of a tower": Case(dtype=torch.float16, width=72, queries=150, keys=150, causal=False, shared=True),
    "seven heads a key head": Case(dtype=torch.float16, width=80, heads=7, queries=150, keys=150, first=(20,)),
    "vertical lines": Case(width=128, queries=150, single=50, first=(70,)),
    "vertical lines in half precision": Case(dtype=torch.float16, width=128, queries=130, single=7, window=9),
    "soft cap and scaling": Case(width=80, key_heads=2, queries=150, keys=150, softcap=5.0, scaling=0.4, window=30),
    "text alone": Case(dtype=torch.float16, width=64, batch=2, queries=150, keys=150, shared=True, text=0.2),
    "both ways, window, padded": Case(width=96, causal=False, queries=150, first=(33,), window=50, sinks=2),
    "wide heads": Case(dtype=torch.float16, width=256, heads=1, queries=100, keys=150),
    "narrow heads, small blocks": Case(width=16, heads=1, rows=32, columns=16, queries=70, keys=150),
    "blocks of several tiles": Case(width=32, heads=1, rows=256, columns=256, queries=600, keys=700),
    "one query": Case(dtype=torch.float16, width=128, heads=4, key_heads=2, queries=1, keys=300),
    "one token": Case(width=40, queries=1, keys=1),
}

Call = tuple[Tensor, Tensor, Tensor, BlockLists, Rule]


def draw(case: Case, generator: torch.Generator) -> Call:
    """Tensors, random lists and rule of a case."""
    query = normal(generator, case.batch, case.heads, case.queries, case.width, dtype=case.dtype)
    key, value = (
        normal(generator, case.batch, case.key_heads, case.keys, case.width, dtype=case.dtype) for _ in range(2)
    )
    first = None if case.first is None else torch.tensor(case.first, dtype=torch.int32)
    text = None
    if case.text is not None:
        text = torch.rand(case.batch, case.keys, generator=generator) < case.text
    return query, key, value, draw_lists(case, generator), Rule(case.causal, first, text, case.sinks, case.window)


def draw_lists(case: Case, generator: torch.Generator) -> BlockLists:
    """Each block at random not at all, in part or whole, as far as it may; single keys where no block is listed."""
    owners = (1, 1) if case.shared else (case.batch, case.heads)
    blocks = (-(-case.queries // case.rows), -(-case.keys // case.columns))
    kind = torch.randint(0, 3, (*owners, *blocks), generator=generator)
    kind[:, :, -1, 0] = 2  # somebody sees something
    begin = torch.arange(blocks[0])[:, None] * case.rows + case.keys - case.queries
    last = torch.arange(1, blocks[1] + 1) * case.columns - 1
    whole = (last < case.keys).expand(blocks)
    if case.causal:
        whole = whole & (last <= begin)
    if case.first is not None:
        whole = whole & (last - case.columns + 1 >= max(case.first))
    lists = BlockLists.of_masks((kind == 1) & whole, (kind == 2) | ((kind == 1) & ~whole), case.rows, case.columns)
    if not case.single:
        return lists
    chance = torch.rand(*owners, blocks[0], case.keys, generator=generator)
    taken = (kind > 0).repeat_interleave(case.columns, -1)[..., : case.keys]
    order = chance.masked_fill(taken, 2.0).argsort(-1)[..., : case.single].sort(-1).values
    # keys that are taken go to the end, behind the count
    free = (~taken).sum(-1).clamp(max=case.single)
    order = order.where(~taken.gather(-1, order), case.keys).sort(-1).values
    return replace(lists, column_count=free.int(), column_index=order.int().contiguous())


def answer(case: Case, call: Call, backend: str) -> tuple[Tensor, Tensor]:
    made = sparse_attention(*call, scaling=case.scaling, softcap=case.softcap, return_lse=True, backend=backend)
    assert isinstance(made, tuple)
    return made


def wanted(case: Case, call: Call) -> tuple[Tensor, Tensor]:
    """The answer by the definition, in float64."""
    query, key, value, lists, rule = call
    return answer(case, (query.double(), key.double(), value.double(), lists, rule), "reference")


def faults(case: Case, call: Call, made: tuple[Tensor, Tensor]) -> list[str]:
    """What is wrong with an answer."""
    want, want_lse = wanted(case, call)
    output, lse = made
    seen = call[3].mask(case.queries, case.keys, call[4]).any(-1).expand(want_lse.shape)
    found = []
    if output.dtype != case.dtype or output.shape != want.shape or lse.shape != want_lse.shape:
        found.append(f"{output.dtype} {output.shape}, {lse.dtype} {lse.shape}")
    if (distance := relative(output, want)) > TOLERANCE[case.dtype]:
        found.append(f"output off by {distance:.1e}")
    if not bool((output[~seen] == 0).all()):
        found.append("rows that see nothing are not 0")
    if not torch.equal(lse == -torch.inf, ~seen):
        found.append("-inf elsewhere than in rows that see nothing")
    apart = (lse.double() - want_lse)[seen & lse.isfinite()].abs()
    if lse.isnan().any() or (apart.numel() and float(apart.max()) > LSE_TOLERANCE[case.dtype]):
        found.append(f"log-sum-exp off by {float(apart.max()):.1e}")
    return found
