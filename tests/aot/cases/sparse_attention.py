"""Sparse attention: causal block lists, and all that may be asked of them at once."""

from __future__ import annotations

from functools import partial

import torch

from tests.aot.case import TENSOR_CORES, Case, Expect
from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.sparse_attention import launch

LENGTH = 512


def call(width: int, dtype: torch.dtype, *, block: int = 128, hard: bool = False, softcap: float = 0.0) -> object:
    """A launch of four heads over two; `hard` adds single keys, padding, text, sinks and a window."""
    query = torch.zeros(1, LENGTH, 4, width, dtype=dtype).transpose(1, 2)
    key, value = (torch.zeros(1, 2, LENGTH, width, dtype=dtype) for _ in range(2))
    blocks = torch.ones(1, 1, LENGTH // block, LENGTH // block, dtype=torch.bool)
    lists = BlockLists.of_masks(blocks.tril(-1), blocks.tril().triu(), block, block)
    rule = Rule()
    if hard:
        count, index = lists.part_count, torch.zeros(*blocks.shape[:3], 64, dtype=torch.int32)
        lists = BlockLists(
            lists.full_count, lists.full_index, lists.part_count, lists.part_index, block, block, count, index
        )
        rule = Rule(first=torch.zeros(1, dtype=torch.int32), text=torch.zeros(1, LENGTH).bool(), sinks=4, window=100)
    return launch.sparse_attention(query, key, value, lists, rule, scaling=0.1, softcap=softcap)


def expect(*budget: float) -> dict[str, Expect]:
    """Keys and values are copied 16 bytes at a time without passing through registers; products on tensor cores.

    budget: for loops over blocks seen whole, blocks seen in part, single keys; that of the architecture that needs most
    """
    needs = {arch: (TENSOR_CORES[arch], "LDGSTS.128") for arch in TENSOR_CORES}
    return {"attend": Expect(needs=needs, elements=128 * 64 if budget else None, budget=budget or None)}


CASES = {
    "d128": Case(partial(call, 128, torch.bfloat16), expect(16.5, 20.5)),
    "d128 with everything": Case(partial(call, 128, torch.float16, hard=True), expect(16.5, 32.0, 38.0)),
    "d64 with everything": Case(partial(call, 64, torch.bfloat16, hard=True), expect(11.5, 36.5, 36.5), archs=(90,)),
    "d72 with everything": Case(partial(call, 72, torch.bfloat16, hard=True), expect(), archs=(90,)),
    # variants, each where it is tightest
    "d256, soft cap": Case(partial(call, 256, torch.bfloat16, softcap=30.0), expect(), archs=(100,)),
    "d128, blocks of 64": Case(partial(call, 128, torch.bfloat16, block=64, hard=True), archs=(100,)),
    "d256, blocks of 64": Case(partial(call, 256, torch.bfloat16, block=64, hard=True), archs=(80,)),
    "d128 single": Case(partial(call, 128, torch.float32), archs=(80,)),
}
