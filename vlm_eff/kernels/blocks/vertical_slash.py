"""Blocks of the vertical-slash pattern: the columns and the diagonals that the last rows look at most."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.blocks.grid import Grid, grid_of, real
from vlm_eff.kernels.blocks.lists import BlockLists
from vlm_eff.kernels.blocks.rule import Rule

# logits held at a time, in numbers: 64 MiB of float32
_CHUNK = 1 << 24


def vertical_slash(
    query: Tensor,
    key: Tensor,
    *,
    verticals: int = 500,
    slashes: int = 700,
    last: int = 64,
    sinks: int = 30,
    local: int = 100,
    scaling: float | None = None,
    first: Tensor | None = None,
    rows: int = 128,
    columns: int = 64,
) -> tuple[BlockLists, Rule]:
    """Lists and rule of the keys and the distances that the last rows of a prompt look at, each head for itself.

    The last rows' attention is summed over the rows, key by key and distance by distance. A query sees the best
    `verticals` keys, and every block of keys in which a query of its block has a key at one of the best `slashes`
    distances; never later keys. The first `sinks` keys and the last `local` distances are always among the best, and
    are counted. Ties go to the lower key and the shorter distance.

    The vertical-slash heads of MInference (arXiv:2407.02490), with a budget, `last`, `sinks` and `local` of its code.
    There, blocks are 64 by 64 and follow the diagonals at any offset; here they lie in one grid, so that a diagonal
    takes a block more, and heads that share keys are not expanded. Which keys a query sees beyond the best ones depends
    on where blocks fall, and so on left padding.

    query: [B, H, Q, Dh], the last Q of S tokens; key: [B, Hkv, S, Dh]; both as they attend, rotated
    verticals, slashes: how many keys and distances of each head, of those there are
    last:               rows that are asked, of the Q
    scaling:            factor of the logits (default Dh ** -0.5)
    first, rows, columns: as in `cross_modal`

    Cost: the products of `last` rows, 2 * last / S of dense attention, in chunks of heads; lists of
    [B, H, NQ, NK + verticals] entries. Nothing waits for the device.

    Raises:
        InputError: budgets out of range, query and key that do not fit.
    """
    _check(verticals=verticals, slashes=slashes, last=last, local=local)
    grid = grid_of(query, key, rows, columns)
    by_key, by_distance = last_rows(query, key, min(last, grid.queries), scaling, first)
    sunk = torch.arange(grid.keys, device=query.device) < grid.first(first)[:, 0] + sinks
    there = real(grid, first)[:, None]
    by_key = by_key.masked_fill(sunk, torch.inf).masked_fill(~there, -torch.inf)
    by_distance[..., :local] = torch.inf
    some, every = grid.seen(first)
    listed = _crossed(grid, _best(by_distance, slashes)) & some
    full = listed & every
    lists = BlockLists.of_masks(full, listed & ~full, rows, columns)
    index = by_key.sort(dim=-1, descending=True, stable=True).indices[..., :verticals].sort(-1).values
    count, index = _columns(grid, listed, there.expand_as(by_key).gather(-1, index), index)
    made = BlockLists(
        lists.full_count, lists.full_index, lists.part_count, lists.part_index, rows, columns, count, index
    )
    return made, Rule(True, first)


def last_rows(
    query: Tensor, key: Tensor, last: int, scaling: float | None = None, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of the last rows, summed by key and by distance: two float32 [B, H, S].

    query [B, H, Q, Dh], key [B, Hkv, S, Dh]; the softmax is over all keys a row may see. Entry d of the second is what
    the rows give to the key d positions before them.
    """
    batch, heads, _, width = query.shape
    shared, keys = key.shape[1], key.shape[2]
    asked = query[:, :, -last:].unflatten(1, (shared, heads // shared))
    factor = width**-0.5 if scaling is None else scaling
    place = torch.arange(keys, device=query.device)
    hidden = place > place[-last:, None]
    if first is not None:
        hidden = hidden | (place < first[:, None, None, None, None])
    step = max(1, _CHUNK // (batch * heads // shared * last * keys))
    by_key, by_distance = [], []
    for start in range(0, shared, step):
        part = slice(start, start + step)
        logits = asked[:, part].float() @ key[:, part, None].float().transpose(-1, -2) * factor
        # a row of padding sees nothing, and has no softmax
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
        by_key.append(weights.sum(-2).flatten(1, 2))
        by_distance.append(_diagonals(weights).flatten(1, 2))
    return torch.cat(by_key, 1), torch.cat(by_distance, 1)


def _diagonals(weights: Tensor) -> Tensor:
    """Sums of the last R rows [..., R, S] by distance between row and key [..., S]."""
    last, keys = weights.shape[-2:]
    # written one after the other with R places between them, rows come to lie with their diagonals in columns
    spread = torch.nn.functional.pad(weights.flip(-1), (0, last)).flatten(-2)
    spread = spread[..., last - 1 : last - 1 + last * (keys + last - 1)]
    return spread.unflatten(-1, (last, keys + last - 1))[..., :keys].sum(-2)


def _best(scores: Tensor, count: int) -> Tensor:
    """The best `count` of the last axis as flags, the lower of equals."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def _crossed(grid: Grid, distances: Tensor) -> Tensor:
    """Blocks in which a query and a key lie at one of the distances, flags [B, H, S]; [B, H, NQ, NK]."""
    upto = torch.nn.functional.pad(distances.cumsum(-1, dtype=torch.int32), (1, 0))
    nearest, farthest = (grid.top - grid.right).clamp(min=0), (grid.bottom - grid.left).clamp(min=-1)
    return upto[..., farthest + 1] > upto[..., nearest]


def _columns(grid: Grid, listed: Tensor, exists: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Of the ascending keys [B, H, NV] that exist, those which each block of queries may see outside its blocks."""
    batch, heads, size = index.shape
    block = (index // grid.columns)[:, :, None].expand(-1, -1, grid.shape[0], -1)
    extra = (
        exists[:, :, None] & (index[:, :, None] <= grid.bottom) & ~listed.expand(batch, heads, -1, -1).gather(3, block)
    )
    order = (~extra).to(torch.int8).argsort(dim=-1, stable=True)
    moved = index[:, :, None].expand(batch, heads, grid.shape[0], size).gather(-1, order)
    return extra.sum(-1, dtype=torch.int32), moved.to(torch.int32)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(explain(f"{name}={value}", "at least 1", f"Give a larger {name}"))
