"""Blocks that score best by what their queries and their keys are on average."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.blocks.grid import Grid, grid_of
from vlm_eff.kernels.blocks.lists import BlockLists
from vlm_eff.kernels.blocks.rule import Rule


def top_blocks(
    query: Tensor,
    key: Tensor,
    *,
    count: int | None = None,
    mass: float | None = None,
    similarity: float | None = None,
    scaling: float | None = None,
    first: Tensor | None = None,
    rows: int = 128,
    columns: int = 64,
) -> tuple[BlockLists, Rule]:
    """Lists and rule of the blocks of keys that score best for each block of queries, each head for itself.

    A pair of blocks scores the product of the mean query and the mean key. Of the blocks a block of queries may look
    at, those with the best scores are listed: `count` of them, or the fewest whose softmax over blocks adds up to
    `mass`. The block of the first token and the blocks at the diagonal are always listed, and counted. Ties go to the
    lower block.

    The block-sparse heads of MInference (arXiv:2407.02490: count, 64 by 64) and SpargeAttn (arXiv:2502.18137: mass,
    128 by 64). SpargeAttn lists every pair of which a block is not alike in itself, for its mean says little: that is
    `similarity`. It quantises the products too, which is not done here. Where blocks fall, and so what is chosen,
    depends on left padding.

    query: [B, H, Q, Dh], the last Q of S tokens; key: [B, Hkv, S, Dh]; both as they attend, rotated
    count:      blocks of keys for each block of queries, of those there are
    mass:       (0, 1]
    similarity: mean cosine between the tokens of a block below which it is never skipped (None: not asked)
    scaling:    factor of the scores (default Dh ** -0.5)
    first, rows, columns: as in `cross_modal`

    Cost: means over query and key, 1 / (rows * columns) of the products, and a sort of the [B, H, NQ, NK] scores.
    Nothing waits for the device.

    Raises:
        InputError: not exactly one of count and mass, values out of range, query and key that do not fit.
    """
    _check(count, mass)
    grid = grid_of(query, key, rows, columns)
    begin = None if first is None else (first - grid.past).clamp(min=0)
    asked, asked_alike = _means(query, begin, rows, alike=similarity is not None)
    shown, shown_alike = _means(key, first, columns, alike=similarity is not None)
    groups = query.shape[1] // key.shape[1]
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    scores = (asked.unflatten(1, (-1, groups)) @ shown[:, :, None].transpose(-1, -2)).flatten(1, 2) * factor
    some, every = grid.seen(first)
    always = some & _always(grid, first)
    scores = scores.masked_fill(~some, -torch.inf)
    listed = some & _chosen(scores, always, count, mass)
    if similarity is not None and asked_alike is not None and shown_alike is not None:
        mixed = shown_alike.repeat_interleave(groups, 1) < similarity
        listed = listed | (some & ((asked_alike < similarity)[..., None] | mixed[:, :, None]))
    full = listed & every
    return BlockLists.of_masks(full, listed & ~full, rows, columns), Rule(True, first)


def _means(states: Tensor, first: Tensor | None, size: int, *, alike: bool) -> tuple[Tensor, Tensor | None]:
    """Mean of each block of `size` states [B, H, N, Dh], and, if `alike`, the mean cosine of its pairs [B, H, N].

    first: [B] the first state that counts. A block without any has mean 0 and cosine 1. At least float32.
    """
    length, device = states.shape[2], states.device
    left = torch.arange(0, length, size, device=device)
    counts = (left + size).clamp(max=length) - left
    if first is not None:
        hidden = torch.arange(length, device=device) < first[:, None]
        states = states.masked_fill(hidden[:, None, :, None], 0.0)
        counts = torch.minimum(counts, (left + size).clamp(max=length) - first[:, None]).clamp(min=0)[:, None]
    shares = counts.clamp(min=1)[..., None]
    if not alike:
        return _sums(states, size) / shares, None
    cosine = (_sums(torch.nn.functional.normalize(states, dim=-1), size) / shares).square().sum(-1)
    return _sums(states, size) / shares, cosine.masked_fill(counts == 0, 1.0)


def _sums(states: Tensor, size: int) -> Tensor:
    """Sums over blocks of `size` states, without a copy of them in another type."""
    kind = torch.promote_types(states.dtype, torch.float32)
    whole = states.shape[2] // size * size
    made = states[:, :, :whole].unflatten(2, (-1, size)).sum(3, dtype=kind)
    return made if whole == states.shape[2] else torch.cat([made, states[:, :, whole:].sum(2, True, dtype=kind)], 2)


def _always(grid: Grid, first: Tensor | None) -> Tensor:
    """The block of the first token and the blocks at the diagonal [B | 1, 1, NQ, NK]."""
    begin = grid.first(first)
    opening = (grid.left <= begin) & (begin <= grid.right)
    return opening | ((grid.right >= grid.top) & (grid.left <= grid.bottom))


def _chosen(scores: Tensor, always: Tensor, count: int | None, mass: float | None) -> Tensor:
    """The best of each row of scores [B, H, NQ, NK], -inf where nothing may be looked at; `always` comes first."""
    order = scores.masked_fill(always, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    if mass is None:
        taken = torch.zeros_like(scores, dtype=torch.bool)
        return taken.scatter_(-1, order[..., :count], True) | always
    if mass == 1:
        return torch.ones_like(always)
    weights = scores.softmax(-1).nan_to_num(0.0)
    held = weights.gather(-1, order)
    # a block is taken while those before it do not hold enough
    needed = held.cumsum(-1) - held < mass
    return torch.zeros_like(needed).scatter_(-1, order, needed) | always


def _check(count: int | None, mass: float | None) -> None:
    if (count is None) == (mass is None):
        raise InputError(explain(f"count={count}, mass={mass}", "exactly one of the two", "Say how many blocks"))
    if (count is not None and count < 1) or (mass is not None and not 0 < mass <= 1):
        raise InputError(
            explain(f"count={count}, mass={mass}", "count of at least 1, mass in (0, 1]", "Choose a value in range")
        )
