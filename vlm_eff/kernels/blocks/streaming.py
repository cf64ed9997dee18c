"""Blocks of streaming heads: some heads see sinks and a local window, the others everything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.blocks.grid import Grid
from vlm_eff.kernels.blocks.lists import BlockLists
from vlm_eff.kernels.blocks.rule import Rule


def streaming(
    dense: Sequence[bool],
    key_length: int,
    *,
    sinks: int = 64,
    local: int = 256,
    first: Tensor | None = None,
    query_length: int | None = None,
    rows: int = 128,
    columns: int = 64,
    device: torch.device | None = None,
) -> tuple[BlockLists, Rule]:
    """Lists and rule in which a streaming head sees the first keys and the last ones, and a dense head all of them.

        dense head:      j <= i and j >= first
        streaming head:  j <= i and j >= first and (j < first + sinks or i - j < local)

    Exact, whatever the size of the blocks. DuoAttention (arXiv:2410.10819) and LServe (arXiv:2502.14866) learn which
    heads stream; here the caller says it. LServe rounds sinks and window to blocks, which makes the result depend on
    the size of blocks and on padding; here the rule decides inside blocks.

    dense:         [H] which heads see everything; with none, all heads have the A-shape of MInference (2407.02490)
    key_length:    S
    sinks, local:  how many of the first keys, padding left out, and of the keys up to its own a streaming head sees
    first, query_length, rows, columns: as in `cross_modal`
    device:        of the lists, where `first` does not tell

    Cost: [B | 1, H, NQ, NK] flags and their sort. Density of a streaming head is about (sinks + local) / (S / 2).

    Raises:
        InputError: sizes out of range; dense heads beside a window shorter than rows + columns - 1, or beside fewer
            sinks than a block has keys but one in a batch with padding: one rule serves all heads, and inside blocks at
            the diagonal and at the first key it would take keys away from the dense ones.
    """
    _check(dense, sinks, local, rows, columns, padded=first is not None)
    where = first.device if first is not None else device
    grid = Grid(key_length if query_length is None else query_length, key_length, rows, columns, where or _CPU)
    rule = Rule(True, first, None, sinks, local)
    some, every = grid.seen(first)
    begin = grid.first(first)
    sunk_some, sunk_all = grid.left < begin + sinks, grid.right < begin + sinks
    near_some, near_all = grid.top - grid.right < local, grid.bottom - grid.left < local
    whole = torch.tensor(tuple(dense), dtype=torch.bool, device=grid.device)[None, :, None, None]
    full = every & (whole | sunk_all | near_all)
    listed = some & (whole | sunk_some | near_some)
    return BlockLists.of_masks(full, listed & ~full, rows, columns), rule


_CPU = torch.device("cpu")


def _check(dense: Sequence[bool], sinks: int, local: int, rows: int, columns: int, padded: bool) -> None:
    if not len(dense):
        raise InputError(explain("no heads", "one truth value for each head", "Say which heads are dense"))
    if not any(dense):
        return
    if local < rows + columns - 1 or (padded and sinks < columns - 1):
        got = f"dense heads beside streaming ones, local={local}, sinks={sinks}, blocks of {rows} by {columns}"
        wanted = f"local of at least {rows + columns - 1}" + (f", sinks of at least {columns - 1}" if padded else "")
        raise InputError(explain(got, wanted, "Take a longer window, or smaller blocks"))
