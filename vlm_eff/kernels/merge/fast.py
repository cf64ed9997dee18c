"""`merge_tokens` and `sum_into` in PyTorch: rows of numbers added one after another."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_tokens(hidden: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each token times its share of the size of its place, added up."""
    if size is None:
        size = torch.ones(into.shape, device=into.device)
    place, places = _place(into, count), into.shape[0] * count
    total = _add(size.flatten()[:, None], place, places + 1)[:, 0]
    whole = total[place].view_as(into)
    share = torch.where(whole > 0, size / whole, 0.0)
    return sum_into(hidden, into, count, share), total[:-1].view(into.shape[0], count)


def sum_into(x: Tensor, into: Tensor, count: int, weight: Tensor | None) -> Tensor:
    """All rows of the batch as one long row of places, with a spare one behind it for what goes nowhere."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if weight is not None:
        wide = wide * weight[:, :, None].to(wide.dtype)
    made = _add(wide.flatten(0, 1), _place(into, count), x.shape[0] * count + 1)
    return made[:-1].view(x.shape[0], count, x.shape[2]).to(x.dtype)


def _place(into: Tensor, count: int) -> Tensor:
    """Place of each token [N * T] among N * `count` places, or behind them."""
    row = torch.arange(into.shape[0], device=into.device)[:, None] * count
    inside = (into >= 0) & (into < count)
    return torch.where(inside, into + row, into.shape[0] * count).flatten()


def _add(wide: Tensor, place: Tensor, places: int) -> Tensor:
    """Rows [N * T, C] added up at their places [places, C], in their order."""
    if wide.is_cuda:
        return in_order(wide, place, places)
    return wide.new_zeros(places, wide.shape[1]).index_add_(0, place, wide)


def in_order(wide: Tensor, place: Tensor, places: int) -> Tensor:
    """Rows [M, C] added up by place [places, C] without the atomic additions that `index_add_` does on a GPU."""
    order = place.argsort(stable=True)
    lengths = torch.zeros(places, dtype=torch.long, device=place.device).scatter_add_(0, place, torch.ones_like(place))
    return torch.segment_reduce(wide[order], "sum", lengths=lengths, unsafe=True, initial=0)
