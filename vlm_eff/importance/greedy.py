"""Greedy choices that look at what is chosen already: spread out (max-min), and likely under a DPP.

One step serves all rows of a batch, costs one line of similarities and never asks the device. Chosen tokens leave the
race, so that none is chosen twice; ties go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance import similarity
from vlm_eff.importance.similarity import Lines, lines, pairwise, table_lines
from vlm_eff.kernels.bipartite_match import best_partner

# a residual this small next to the token's own weight is rounding: the token adds nothing to the chosen ones
_ROUNDING = 1e-5


def max_min(x: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Mask [B, V] of `count` [B] tokens of `x` [B, V, D] that lie far apart; distance is 1 - cosine.

    The first is the token whose nearest neighbour is farthest away; each next one is farthest from its nearest chosen
    one (the greedy of DivPrune, arXiv:2503.02175, equation 4; within a factor 2 of the best smallest distance).
    valid: [B, V] which tokens exist. Cost: V * V * D / 2 multiply-adds for the first, V for each other one.
    """
    steps = _steps(count, valid)
    if steps == 0:
        return torch.zeros_like(valid)
    if x.shape[1] <= similarity.TABLE:
        table = pairwise(x, valid)
        # a token is no neighbour of itself, and when it is chosen it leaves the race anyhow
        table.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        line, near = table_lines(table), 1 - table.masked_fill(~valid[:, None], -torch.inf).amax(-1)
    else:
        line, near = lines(x, valid), nearest_distance(x, valid)
    far = torch.where(valid, torch.inf, -torch.inf)
    made = [near.masked_fill(~valid, -torch.inf).argmax(1)]
    for _ in range(steps - 1):
        far = torch.minimum(far, 1 - line(made[-1])).scatter_(1, made[-1][:, None], -torch.inf)
        made.append(far.argmax(1))
    return _mask(made, count, valid)


def nearest_distance(x: Tensor, valid: Tensor) -> Tensor:
    """Distance (1 - cosine) of each token to its nearest other one [B, V]; infinite for a token that is alone."""
    group = torch.where(valid, 0, -1)
    best, _ = best_partner(x.detach(), x.detach(), source_group=group, goal_group=group, apart=True)
    return 1 - best.float().clamp(max=1)


def dpp(x: Tensor, quality: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Mask [B, V] of `count` [B] tokens that are good and unlike one another: greedy MAP of a determinantal process.

    x: [B, V, D]; quality: [B, V] non-negative; the kernel is L_ij = quality_i * cosine(x_i, x_j) * quality_j.
    Each step takes the token that makes the determinant of the chosen block largest and updates what is left of the
    others by one line of the Cholesky factor (Chen et al., arXiv:1709.05135, algorithm 1). What is left never falls
    below 0; when nothing is left, the lower index goes first. Cost of step t: V * t; memory: V * count.
    """
    return dpp_lines(lines(x, valid), quality, count, valid)


def dpp_lines(line: Lines, quality: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """`dpp` for any similarity with ones on its diagonal that gives one line [B, V] at a time."""
    rows = torch.arange(valid.shape[0], device=valid.device)
    weight = quality.float().masked_fill(~valid, 0.0)
    own = weight.square()
    steps = _steps(count, valid)
    factor = own.new_zeros(own.shape[0], steps, own.shape[1])
    left, made = own.masked_fill(~valid, -torch.inf), []
    for step in range(steps):
        column = left.argmax(1)
        made.append(column)
        pivot = left[rows, column].clamp(min=0)[:, None]
        done = factor[:, :step]
        known = (done[rows, :, column][:, None] @ done)[:, 0]
        rest = weight[rows, column][:, None] * line(column) * weight - known
        # with nothing left of the pivot there is nothing to take from the others
        update = torch.where(pivot > 0, rest / pivot.clamp(min=torch.finfo(pivot.dtype).tiny).sqrt(), 0.0)
        factor[:, step] = update
        rest = left - update.square()
        rest = torch.where(rest > _ROUNDING * own, rest, 0.0)
        left = torch.where(left == -torch.inf, left, rest).scatter_(1, column[:, None], -torch.inf)
    return _mask(made, count, valid)


def _steps(count: Tensor, valid: Tensor) -> int:
    """Steps that the row with the largest count needs; the only question to the device."""
    return int(torch.minimum(count, valid.sum(1)).max()) if valid.numel() else 0


def _mask(made: list[Tensor], count: Tensor, valid: Tensor) -> Tensor:
    """The first `count` choices of each row; rows with smaller counts went on choosing, which is cut off here."""
    if not made:
        return torch.zeros_like(valid)
    rows, width = valid.shape
    counted = torch.arange(len(made), device=valid.device) < torch.minimum(count, valid.sum(1))[:, None]
    chosen = torch.zeros(rows, width + 1, dtype=torch.bool, device=valid.device)
    return chosen.scatter_(1, torch.where(counted, torch.stack(made, 1), width), True)[:, :-1]
