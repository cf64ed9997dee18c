"""Taking near copies out of a ranked list, a few at a time, until a given number is left."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance.similarity import normalised

# similarities of one round that are alive at a time (64 MiB of float32)
_BLOCK = 1 << 24


def distinct(features: Tensor, keep: int, step: int) -> Tensor:
    """Places [N, keep] of what is left, in ascending order, of N lists of equal length.

    features: [N, R, D], best first. In each round the lists are split into even and odd places, each even one is
    compared with the odd one most like it (cosine), and the `step` evens most alike to theirs go (VisPruner). The first
    place goes like any other. Ties take the lower place out first, so that equal input gives equal output.
    """
    unit = normalised(features)
    left = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
    while left.shape[1] > keep:
        even, odd = left[:, ::2], left[:, 1::2]
        gone = min(step, left.shape[1] - keep, even.shape[1])
        order = _likeness(unit, even, odd).sort(dim=1, descending=True, stable=True).indices[:, :gone]
        stays = torch.ones_like(left, dtype=torch.bool).scatter_(1, order * 2, False)
        left = left[stays].view(left.shape[0], -1)
    return left.sort(dim=1).values


def _likeness(unit: Tensor, even: Tensor, odd: Tensor) -> Tensor:
    """Cosine between each even token and the odd one most like it [N, E]; a list of one token is like nothing."""
    if not odd.shape[1]:
        return unit.new_zeros(even.shape)
    one, other = (unit.gather(1, at[:, :, None].expand(-1, -1, unit.shape[2])) for at in (even, odd))
    size = max(1, _BLOCK // (len(unit) * odd.shape[1]))
    parts = [(one[:, s : s + size] @ other.transpose(1, 2)).amax(-1) for s in range(0, one.shape[1], size)]
    return torch.cat(parts, 1)
