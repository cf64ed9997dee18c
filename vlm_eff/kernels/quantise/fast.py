"""Quantising without a kernel: the arithmetic of the definition, in the order in which entries lie in memory.

The definition turns channels into lines first and then passes over them a dozen times. Here groups are formed in
place, a chunk of heads at a time that stays in the processor's caches, codes are turned only once they are packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.format import Format, stored_types
from vlm_eff.kernels.pack import pack
from vlm_eff.kernels.quantise import reference
from vlm_eff.kernels.quantise.lines import valid_first
from vlm_eff.kernels.quantise.rounding import statistics
from vlm_eff.kernels.quantise.stored import Quantised

# numbers that are worked on at once: 1 MiB in float32, about a core's second cache
_CHUNK = 1 << 18


def quantise(x: Tensor, format: Format, valid: Tensor | None) -> Quantised:
    """As the definition, bit for bit."""
    if format.outliers or not x.numel():
        return reference.quantise(x, format, valid)
    present = channel = None
    if valid is not None and reference.needs_order(format):
        present, order = pack(valid.to(torch.uint8), 1), valid_first(valid)
        x, valid = x.gather(2, order[..., None].expand_as(x)), valid.gather(2, order)
    if format.separable:
        channel = reference.channel_sizes(x, valid)
    heads = x.shape[0] * x.shape[1]
    flat = x.reshape(heads, *x.shape[2:])
    many = max(_CHUNK // max(x[0, 0].numel(), 1), 1)
    parts = [
        _some_heads(
            flat[at : at + many],
            None if valid is None else valid.reshape(heads, -1)[at : at + many],
            None if channel is None else channel.reshape(heads, 1, -1)[at : at + many],
            format,
        )
        for at in range(0, heads, many)
    ]
    codes, scale, lowest = (
        (torch.cat(part) if len(part) > 1 else part[0]).unflatten(0, x.shape[:2]) for part in zip(*parts, strict=True)
    )
    return Quantised(format, x.shape[2], x.shape[3], codes, scale, lowest, channel, present)


def _some_heads(
    x: Tensor, valid: Tensor | None, channel: Tensor | None, format: Format
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, lines, bytes], step and lowest value [N, lines, groups] of heads [N, P, Dh]."""
    types = stored_types(format, x.dtype)
    scaled = x if channel is None else x.float() / channel.float()
    known = None if valid is None else valid[..., None]
    # the axis along which groups lie: lines are turned once they are packed
    axis = 2 if format.axis == "token" else 1
    length = x.shape[axis]
    size = format.size(length)
    whole = length // size * size
    made = []
    for first, last in ((0, whole), (whole, length)):
        if last > first:
            part = scaled.narrow(axis, first, last - first).unflatten(axis, (-1, min(size, last - first)))
            seen = known
            if known is not None:
                seen = known[:, :, None] if axis == 2 else known[:, first:last].unflatten(1, (-1, part.shape[2]))
            made.append(_grouped(part, seen, axis + 1, format, types))
    codes, scale, lowest = (torch.cat(part, axis) if len(made) > 1 else part[0] for part in zip(*made, strict=True))
    codes = pack(codes, format.bits, axis)
    if axis == 1:
        codes, scale, lowest = (part.transpose(1, 2).contiguous() for part in (codes, scale, lowest))
    return codes, scale, lowest


def _grouped(
    part: Tensor, known: Tensor | None, axis: int, format: Format, types: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of groups that lie along `axis`, joined along the axis before it, and their step and lowest value."""
    if known is None:
        low, high = part.amin(axis).float(), part.amax(axis).float()
    else:
        low = part.masked_fill(~known, torch.inf).amin(axis).float()
        high = part.masked_fill(~known, -torch.inf).amax(axis).float()
    scale, lowest = statistics(low, high, format, types)
    steps = part.float() - lowest.float().unsqueeze(axis)
    steps = steps.div_(scale.float().unsqueeze(axis)).round_().nan_to_num_(0.0).clamp_(0, format.highest)
    codes = steps.to(torch.uint8) if known is None else steps.masked_fill_(~known, 0.0).to(torch.uint8)
    return codes.flatten(axis - 1, axis), scale, lowest
