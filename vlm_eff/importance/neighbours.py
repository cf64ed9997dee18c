"""Who is beside whom among the candidates: the four neighbours of a token in its own tile or frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def grid_neighbours(group: Tensor, y: Tensor, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the up to four grid neighbours of each candidate [B, V, 4], and which of them exist [B, V, 4].

    group, y, x: [B, V] tile or frame, row and column there (row -1: grid not known); valid: [B, V] which exist
    A neighbour that is no longer a candidate does not exist. Where the grid is not known, neighbours are the candidates
    before and after in their order.
    """
    width = group.shape[1]
    order = torch.arange(width, device=group.device).expand_as(group)
    y, x = torch.where(y < 0, 0, y), torch.where(y < 0, order, x)
    # a frame of empty cells around every grid, so that a step over the edge finds nobody
    high, wide = (int(t.max()) + 3 if width else 3 for t in (y, x))
    cell = (group * high + y + 1) * wide + x + 1
    cells = (int(group.max()) + 1 if width else 1) * high * wide
    owner = torch.full((group.shape[0], cells + 1), -1, dtype=torch.long, device=group.device)
    owner.scatter_(1, torch.where(valid, cell, cells), order)
    owner[:, cells] = -1
    steps = torch.tensor([-wide, -1, 1, wide], device=group.device)
    beside = owner.gather(1, (cell[:, :, None] + steps).flatten(1)).view(*cell.shape, 4)
    exists = (beside >= 0) & valid[:, :, None]
    return beside.clamp(min=0), exists


def neighbour_similarity(features: Tensor, beside: Tensor, exists: Tensor) -> Tensor:
    """Mean cosine similarity of each candidate to its neighbours [B, V] float32; 0 for one without neighbours.

    features: [B, V, D]; beside, exists: [B, V, 4] as `grid_neighbours` gives them
    """
    unit = normalize(features.float(), dim=-1)
    made = torch.zeros(exists.shape, dtype=torch.float32, device=unit.device)
    # one direction at a time: four copies of the features at once would be the largest tensor of the prefill
    for side in range(exists.shape[-1]):
        other = unit.gather(1, beside[:, :, side, None].expand_as(unit))
        made[:, :, side] = (unit * other).sum(-1)
    return (made * exists).sum(-1) / exists.sum(-1).clamp(min=1)
