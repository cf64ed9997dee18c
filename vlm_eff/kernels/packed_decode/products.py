"""Products with quantised lines in PyTorch, without reading them back: scales and lowest values are applied apart.

A plane is every `room`-th number of a line: its codes are one shift and mask of the bytes. They become numbers for a
few heads at a time, so that they stay in the cache of the processor: a third of the time of unpacking all at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlm_eff.kernels.quantise import Quantised


def across(x: Tensor, packed: Quantised, piece: int | None) -> Tensor:
    """Sum over lines of x [N, R, lines] times each number of the line -> [N, R, length]; N is B Hkv.

    piece: numbers unpacked at once, None for all
    """
    length, size = _length(packed)
    codes, scale, lowest = (one.flatten(0, 1) for one in (packed.codes, packed.scale, packed.lowest))

    def some(at: slice) -> Tensor:
        asked = x[at]
        base = asked @ lowest[at].to(x.dtype)
        steps = None if size >= length else scale[at].to(x.dtype)
        if steps is None:
            asked = asked * scale[at].to(x.dtype).transpose(1, 2)
        else:
            base = _spread(base, size, length)
        planes = [asked @ _plane(codes[at], i, packed, steps, x.dtype) for i in range(8 // packed.format.bits)]
        made = planes[0] if len(planes) == 1 else torch.stack(planes, -1).flatten(-2)[..., :length]
        return made + base

    return in_pieces(some, codes, piece)


def along(x: Tensor, packed: Quantised, piece: int | None) -> Tensor:
    """Sum over the numbers of each line, times x [N, R, length] -> [N, R, lines]; N is B Hkv."""
    length, size = _length(packed)
    codes, scale, lowest = (one.flatten(0, 1) for one in (packed.codes, packed.scale, packed.lowest))
    room = 8 // packed.format.bits
    filled = torch.nn.functional.pad(x, (0, codes.shape[-1] * room - length))
    sums = torch.nn.functional.pad(x, (0, -length % size)).unflatten(-1, (-1, size)).sum(-1)

    def some(at: slice) -> Tensor:
        steps = None if size >= length else scale[at].to(x.dtype)
        made = filled[at, :, ::room] @ _plane(codes[at], 0, packed, steps, x.dtype).transpose(1, 2)
        for i in range(1, room):
            made = made + filled[at, :, i::room] @ _plane(codes[at], i, packed, steps, x.dtype).transpose(1, 2)
        if steps is None:
            made = made * scale[at].to(x.dtype).transpose(1, 2)
        return made + sums[at] @ lowest[at].to(x.dtype).transpose(1, 2)

    return in_pieces(some, codes, piece)


def in_pieces(some: Callable[[slice], Tensor], source: Tensor, piece: int | None) -> Tensor:
    """`some` of a few rows and heads at a time, as many as have `piece` numbers in `source` [N, ...] or one."""
    if piece is None:
        return some(slice(None))
    step = max(1, piece // max(source[0].numel(), 1))
    made = [some(slice(at, at + step)) for at in range(0, len(source), step)]
    return made[0] if len(made) == 1 else torch.cat(made)


def _length(packed: Quantised) -> tuple[int, int]:
    """Numbers in a line, and in a full group of it."""
    length = packed.width if packed.format.axis == "token" else packed.count
    return length, packed.format.size(length)


def _plane(codes: Tensor, i: int, packed: Quantised, steps: Tensor | None, kind: torch.dtype) -> Tensor:
    """Every `room`-th number from the i-th on [N, lines, bytes], times the scales `steps` [N, lines, groups]."""
    bits = packed.format.bits
    room = 8 // bits
    one = codes >> (bits * i) if i else codes
    # the highest needs no mask
    made = (one & packed.format.highest if i < room - 1 else one).to(kind)
    if steps is None:
        return made
    size, count = _length(packed)[1], made.shape[-1]
    if size % room or count % (size // room):
        place = room * torch.arange(count, device=codes.device) + i
        # the last byte may be filled up
        return made * steps.index_select(-1, (place // size).clamp(max=steps.shape[-1] - 1))
    return (made.unflatten(-1, (-1, size // room)) * steps[..., None]).flatten(-2)


def _spread(groups: Tensor, size: int, length: int) -> Tensor:
    """Each number [..., groups] `size` times, [..., length] of them."""
    return groups[..., None].expand(*groups.shape, size).flatten(-2)[..., :length]
