"""Greedy choices that look at what is chosen already: tokens that are spread out (max-min).

One step serves all rows of a batch, costs one line of similarities and never asks the device. Chosen tokens leave the
race, so that none is chosen twice; ties go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance import similarity
from vlm_eff.importance.similarity import lines, pairwise, table_lines
from vlm_eff.kernels.bipartite_match import best_partner


def max_min(x: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Mask [B, V] of `count` [B] tokens of `x` [B, V, D] that lie far apart; distance is 1 - cosine.

    The first is the token whose nearest neighbour is farthest away; each next one is farthest from its nearest chosen
    one (the greedy of DivPrune, arXiv:2503.02175, equation 4; within a factor 2 of the best smallest distance).
    valid: [B, V] which tokens exist. Cost: V * V * D / 2 multiply-adds for the first, V for each other one.
    """
    steps = most_steps(count, valid)
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
    return first_choices(made, count, valid)


def nearest_distance(x: Tensor, valid: Tensor) -> Tensor:
    """Distance (1 - cosine) of each token to its nearest other one [B, V]; infinite for a token that is alone."""
    group = torch.where(valid, 0, -1)
    best, _ = best_partner(x.detach(), x.detach(), source_group=group, goal_group=group, apart=True)
    return 1 - best.float().clamp(max=1)


def most_steps(count: Tensor, valid: Tensor) -> int:
    """Steps that the row with the largest count needs; the only question to the device."""
    return int(torch.minimum(count, valid.sum(1)).max()) if valid.numel() else 0


def first_choices(made: list[Tensor], count: Tensor, valid: Tensor) -> Tensor:
    """The first `count` choices of each row; rows with smaller counts went on choosing, which is cut off here."""
    if not made:
        return torch.zeros_like(valid)
    rows, width = valid.shape
    counted = torch.arange(len(made), device=valid.device) < torch.minimum(count, valid.sum(1))[:, None]
    chosen = torch.zeros(rows, width + 1, dtype=torch.bool, device=valid.device)
    return chosen.scatter_(1, torch.where(counted, torch.stack(made, 1), width), True)[:, :-1]
