"""The definition of quantising, written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.format import Format, place_type, stored_types
from vlm_eff.kernels.pack import pack
from vlm_eff.kernels.quantise.lines import in_groups, put, valid_first
from vlm_eff.kernels.quantise.rounding import statistics
from vlm_eff.kernels.quantise.stored import Quantised


def quantise(x: Tensor, format: Format, valid: Tensor | None) -> Quantised:
    """As `vlm_eff.kernels.quantise.quantise` says; `valid` is None where every entry is valid."""
    present = None
    channel = channel_sizes(x, valid) if format.separable else None
    if valid is None:
        valid = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
    elif needs_order(format):
        present, order = pack(valid.to(torch.uint8), 1), valid_first(valid)
        x, valid = x.gather(2, order[..., None].expand_as(x)), valid.gather(2, order)
    if format.axis == "token":
        lines, known = x, valid[..., None].expand_as(x)
    else:
        lines, known = x.transpose(2, 3), valid[:, :, None].expand(*x.shape[:2], x.shape[3], x.shape[2])
    size = format.size(lines.shape[-1])
    scaled = lines.float() if channel is None else lines.float() / channel.float()
    grouped, known = in_groups(scaled, size, 0.0), in_groups(known, size, False)
    place = exact = None
    if format.outliers:
        place = _outliers(grouped, known, format)
        exact = in_groups(lines, size, 0.0).gather(-1, place.clamp(min=0)).masked_fill(place < 0, 0.0)
        known = put(known, place, torch.zeros_like(place, dtype=torch.bool))
        place = place.to(place_type(size))
    low = grouped.masked_fill(~known, torch.inf).amin(-1)
    high = grouped.masked_fill(~known, -torch.inf).amax(-1)
    scale, lowest = statistics(low, high, format, stored_types(format, x.dtype))
    steps = ((grouped - lowest.float()[..., None]) / scale.float()[..., None]).round()
    codes = steps.nan_to_num(0.0).clamp(0, format.highest).masked_fill(~known, 0.0).to(torch.uint8)
    packed = pack(codes.flatten(-2)[..., : lines.shape[-1]], format.bits)
    return Quantised(format, x.shape[2], x.shape[3], packed, scale, lowest, channel, present, place, exact)


def needs_order(format: Format) -> bool:
    """Whether fillers would divide the groups of this format, so that valid entries have to come first."""
    return format.axis == "channel" and format.group is not None


def channel_sizes(x: Tensor, valid: Tensor | None) -> Tensor:
    """Root of the largest magnitude of each channel among the valid entries [B, Hkv, 1, Dh], 1 where it is 0."""
    largest = x.float().nan_to_num(0.0, 0.0, 0.0).abs()
    if valid is not None:
        largest = largest.masked_fill(~valid[..., None], 0.0)
    largest = torch.cat([largest, largest.new_zeros(*x.shape[:2], 1, x.shape[3])], 2) if not x.shape[2] else largest
    root = largest.amax(2, keepdim=True).sqrt().to(torch.float32 if x.dtype == torch.float64 else x.dtype)
    return torch.where(root > 0, root, 1.0)


def _outliers(grouped: Tensor, known: Tensor, format: Format) -> Tensor:
    """Places in their group of the numbers farthest from its median [..., groups, kept] int64, -1 for none."""
    count = known.sum(-1, keepdim=True)
    ordered = grouped.masked_fill(~known, torch.inf).sort(-1).values
    median = ordered.gather(-1, ((count - 1) // 2).clamp(min=0))
    far = (grouped - median).abs().masked_fill(~known, -1.0)
    wanted = torch.tensor([format.kept(n) for n in range(grouped.shape[-1] + 1)], device=grouped.device)[count]
    order = far.argsort(dim=-1, descending=True, stable=True)[..., : format.kept(grouped.shape[-1])]
    rank = torch.arange(order.shape[-1], device=grouped.device)
    return order.masked_fill(rank >= wanted, -1)
