"""`best_partner` in PyTorch: a block of similarities at a time, small enough to stay in the cache of a processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

# similarities alive at a time: 4 MiB of float32, and a byte each for a mask
_BLOCK = 1 << 20


def best_partner(
    source: Tensor,
    goal: Tensor,
    source_group: Tensor | None,
    goal_group: Tensor | None,
    apart: bool,
    slack: float,
) -> tuple[Tensor, Tensor]:
    """The definition, over blocks of whole rows of the batch or of lines of one row."""
    kind = torch.promote_types(source.dtype, torch.float32)
    rows, sources, goals = source.shape[0], source.shape[1], goal.shape[1]
    if rows * sources * goals == 0:
        best = source.new_full((rows, sources), -torch.inf, dtype=kind)
        return best, torch.zeros_like(best, dtype=torch.long)
    unit, against = (normalize(x.to(kind), dim=2, eps=torch.finfo(kind).tiny) for x in (source, goal))
    if source_group is not None and goal_group is not None:
        # those who take no part are equal to nobody on the other side
        source_group = torch.where(source_group < 0, -1, source_group)
        goal_group = torch.where(goal_group < 0, -2, goal_group)
    high = max(1, _BLOCK // (sources * goals))
    wide = min(sources, max(1, _BLOCK // goals))
    found = []
    for row in range(0, rows, high):
        part, lines = slice(row, row + high), []
        for start in range(0, sources, wide):
            line = slice(start, start + wide)
            like = unit[part, line] @ against[part].mT
            if source_group is not None and goal_group is not None:
                like.masked_fill_(source_group[part, line, None] != goal_group[part, None], -torch.inf)
            if apart:
                like.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
            lines.append(_first(like, slack))
            # or it would be alive beside the next one
            del like
        found.append(_joined(lines, 1))
    return _joined(found, 0)


def _first(like: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """The largest of each line [..., G] and the first place that is within `slack` of it."""
    if not slack:
        best, partner = like.max(2)
        return best, partner
    best = like.amax(2)
    return best, (like >= (best - slack)[:, :, None]).view(torch.uint8).argmax(2)


def _joined(parts: list[tuple[Tensor, Tensor]], axis: int) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([best for best, _ in parts], axis), torch.cat([partner for _, partner in parts], axis)
