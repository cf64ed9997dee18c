"""Blocks of the structured cross-modal mask: text sees all, visual tokens see sinks, a local window and the text."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.blocks.grid import Grid, real
from vlm_eff.kernels.blocks.lists import BlockLists
from vlm_eff.kernels.blocks.rule import Rule


def cross_modal(
    text: Tensor,
    *,
    window: int,
    sinks: int = 4,
    first: Tensor | None = None,
    query_length: int | None = None,
    rows: int = 128,
    columns: int = 64,
) -> tuple[BlockLists, Rule]:
    """Lists and rule of a mask in which visual tokens look at each other only nearby.

        allowed(i, j) = j <= i and j >= first and (text[i] or text[j] or j < first + sinks or i - j < window)

    Exact: lists and rule together are this mask, whatever the size of the blocks. Windows and global tokens are those
    of Longformer (arXiv:2004.05150, section 3.1) with text as the global tokens; that text sees all and is seen by all
    follows survey B, section 3.1.1. One list serves all heads and all layers of a prompt.

    text:         [B | 1, S] bool or uint8, 1 where a token is text
    window:       keys up to its own that a visual token sees
    sinks:        first keys, padding left out, that everybody sees
    first:        [B] int32, the first key that is no left padding (None: 0)
    query_length: Q, how many of the S tokens, the last ones, ask (default all)
    rows, columns: size of the blocks of queries and of keys

    Cost: reductions over S flags and a sort of NK flags for each block of queries, once a prompt; nothing of size
    L x L, and nothing waits for the device. Density is about (window + sinks + text) / (S / 2), and the rows of text.

    Raises:
        InputError: window, sinks or blocks out of range, more queries than keys, tensors of another shape.
    """
    rule, keys = Rule(True, first, text, sinks, window), text.shape[1]
    grid = Grid(keys if query_length is None else query_length, keys, rows, columns, text.device)
    some, every = grid.seen(first)
    there = real(grid, first)
    flags = text.bool() & there
    place = torch.arange(keys, device=text.device)
    # a sink is seen by everybody, as text is
    shown = flags | (there & (place < grid.first(first)[:, 0, 0] + sinks))
    asks_some, asks_all = (reduce(grid.by_queries(flags[:, grid.past :], fill)) for reduce, fill in _QUANTIFIERS)
    shown_some, shown_all = (reduce(grid.by_keys(shown, fill)) for reduce, fill in _QUANTIFIERS)
    near_some, near_all = grid.top - grid.right < window, grid.bottom - grid.left < window
    full = every & (asks_all[:, None, :, None] | shown_all[:, None, None] | near_all)
    listed = some & (asks_some[:, None, :, None] | shown_some[:, None, None] | near_some)
    return BlockLists.of_masks(full, listed & ~full, rows, columns), rule


def _some(flags: Tensor) -> Tensor:
    return flags.any(-1)


def _all(flags: Tensor) -> Tensor:
    return flags.all(-1)


# with what fills up a last block without changing the answer
_QUANTIFIERS = ((_some, False), (_all, True))
