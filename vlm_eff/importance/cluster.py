"""Density-peak clustering: centres are dense tokens that are far from denser ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vlm_eff.importance.select import ranks, top_k

# one block of pairs holds at most this many numbers (64 MiB of float32)
_BLOCK = 1 << 24

Pairs = Callable[[], Iterator[tuple[int, Tensor]]]
"""blocks of lines: (first line, squared distances [B, C, V]), not to be written to"""


def dpc_knn(x: Tensor, clusters: Tensor | int, k: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster centres as a mask [B, V], and the column of each token's centre [B, V].

    x: [B, V, D]; clusters: [B], or one number for all rows; k: neighbours that make the density; valid: [B, V]
    The centres are the best by `dpc_scores`; every token goes to the centre nearest to it (Euclidean), a centre to
    itself; ties go to the lower index. Columns that do not exist get themselves.
    The copies in use (Du et al. 2016, as in TCFormer and Chat-UniVi) break ties of the density by random noise; here
    the lower index counts as denser, so that equal input gives equal clusters.
    """
    count = torch.as_tensor(clusters, device=x.device).expand(x.shape[0]).minimum(valid.sum(1))
    centres = top_k(dpc_scores(x, k, valid), count, valid)
    points = _centred(x, valid)
    own = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    # only the centres' columns are looked at: K is the largest number of centres in a row
    width = max(1, int(centres.sum(1).max()))
    column = torch.argsort((~centres).to(torch.int8), dim=1, stable=True)[:, :width]
    exists = centres.gather(1, column)
    goal = points.gather(1, column[:, :, None].expand(-1, -1, x.shape[2]))
    made = own.clone()
    for start, distance in _squared(points, goal):
        nearest = distance.masked_fill_(~exists[:, None], torch.inf).argmin(-1)
        made[:, start : start + distance.shape[1]] = column.gather(1, nearest)
    return centres, torch.where(centres | ~valid, own, made)


def dpc_scores(x: Tensor, k: int, valid: Tensor) -> Tensor:
    """Density times distance to the nearest denser token [B, V] float32; 0 for tokens that do not exist.

    Density is exp(-mean squared distance to the `k` nearest tokens, the token itself among them), distances divided by
    the square root of D. The densest token gets its largest distance to any token instead.
    """
    pairs = _pairs(_centred(x, valid))
    density = _density(pairs, k, valid)
    rank = ranks(density, valid)
    parent = torch.zeros_like(density)
    for start, distance in pairs():
        stop = start + distance.shape[1]
        denser = (rank[:, None, :] < rank[:, start:stop, None]) & valid[:, None]
        nearest = distance.masked_fill(~denser, torch.inf).amin(-1)
        farthest = distance.masked_fill(~valid[:, None], 0.0).amax(-1)
        parent[:, start:stop] = torch.where(denser.any(-1), nearest, farthest).sqrt()
    return torch.where(valid, parent * density, 0.0)


def _density(pairs: Pairs, k: int, valid: Tensor) -> Tensor:
    count = valid.sum(1)
    near = min(k, valid.shape[1])
    made = torch.zeros(valid.shape, device=valid.device)
    # a row with fewer tokens than neighbours averages over those it has
    taken = torch.arange(near, device=valid.device) < count.clamp(max=near)[:, None]
    for start, distance in pairs():
        found = distance.masked_fill(~valid[:, None], torch.inf).topk(near, dim=-1, largest=False).values
        total = found.masked_fill(~taken[:, None], 0.0).sum(-1)
        made[:, start : start + distance.shape[1]] = (-total / taken.sum(1).clamp(min=1)[:, None]).exp()
    return made


def _centred(x: Tensor, valid: Tensor) -> Tensor:
    """Points around their row's mean, divided by the square root of D: small numbers keep small distances exact."""
    x = x.float().masked_fill(~valid[:, :, None], 0.0)
    mean = x.sum(1, keepdim=True) / valid.sum(1).clamp(min=1)[:, None, None]
    return (x - mean).masked_fill(~valid[:, :, None], 0.0) / math.sqrt(x.shape[2])


def _pairs(points: Tensor) -> Pairs:
    """Blocks of squared distances, to be read more than once: kept where they fit into one, else worked out again."""
    if points.shape[0] * points.shape[1] ** 2 > _BLOCK:
        return lambda: _squared(points)
    kept = list(_squared(points))
    return lambda: iter(kept)


def _squared(x: Tensor, other: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Squared distances in blocks of lines: (first line, [B, C, W]); a token to itself is exactly 0."""
    against = x if other is None else other
    length, lengths = x.square().sum(-1), against.square().sum(-1)
    size = max(1, _BLOCK // max(1, against.shape[0] * against.shape[1]))
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        made = length[:, part, None] + lengths[:, None] - 2 * (x[:, part] @ against.transpose(1, 2))
        if other is None:
            made.diagonal(offset=start, dim1=1, dim2=2).zero_()
        yield start, made.clamp_(min=0)
