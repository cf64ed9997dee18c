"""Lines of numbers and the groups that divide them, in an order that puts valid entries first.

A line is what groups divide: the width of one entry (token groups) or the entries of one channel (channel groups).
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_groups(lines: Tensor, size: int, fill: float) -> Tensor:
    """Lines [..., N] -> [..., groups, size]; the last group is filled up."""
    spare = -lines.shape[-1] % size
    if spare:
        lines = torch.nn.functional.pad(lines, (0, spare), value=fill)
    return lines.unflatten(-1, (lines.shape[-1] // size, size))


def put(grouped: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """A copy of `grouped` [..., size] with `values` [..., kept] at `place`; places of -1 are left out."""
    spare = torch.cat([grouped, grouped[..., :1]], -1)
    target = torch.where(place < 0, grouped.shape[-1], place.long())
    return spare.scatter(-1, target, values.to(grouped.dtype))[..., :-1]


def valid_first(valid: Tensor, runs: tuple[int, ...] = ()) -> Tensor:
    """Order [B, Hkv, P] that brings the valid entries to the front and leaves their own order.

    runs: lengths of parts, each of which is ordered for itself
    """
    late = (~valid).to(torch.int8)
    if runs:
        lengths = torch.tensor(runs, device=valid.device)
        part = torch.arange(len(runs), dtype=torch.int32, device=valid.device)
        late = late + 2 * part.repeat_interleave(lengths, output_size=valid.shape[-1])
    return late.argsort(dim=-1, stable=True)
