"""Launching the kernels that quantise: what they cannot do, what they write, and on which grid."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.format import Format, stored_types
from vlm_eff.kernels.pack import pack, packed_bytes
from vlm_eff.kernels.quantise.lines import valid_first
from vlm_eff.kernels.quantise.reference import channel_sizes, needs_order
from vlm_eff.kernels.quantise.rounding import statistics
from vlm_eff.kernels.quantise.stored import Quantised
from vlm_eff.kernels.quantise.tiles import TABLE
from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import lookup, why_no_tiles
from vlm_eff.kernels.triton_here import interpreting, why_not_dense

# entries of a channel that a thread can hold; longer groups take two passes
_LONGEST = 128
_MOST_HEADS = 65535
_KINDS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 17}
_Made = tuple[Tensor, Tensor, Tensor]


def limits(x: Tensor, format: Format, valid: Tensor | None) -> str | None:
    """Why the kernels cannot quantise this; None when they can."""
    if format.outliers:
        return "outliers are chosen by sorting each group, which the kernel does not do"
    length = x.shape[3] if format.axis == "token" else x.shape[2]
    size = format.size(length)
    if size < length and size * format.bits % 8:
        return f"groups of {size} numbers of {format.bits} bits do not fill bytes"
    if x.shape[0] * x.shape[1] > _MOST_HEADS:
        return f"{x.shape[0] * x.shape[1]} rows times heads are more than {_MOST_HEADS}, which a grid can have"
    return why_not_dense(x) or why_no_tiles(TABLE, x.device, x.shape[3], x.dtype)


def quantise(x: Tensor, format: Format, valid: Tensor | None) -> Quantised:
    """As the definition, bit for bit."""
    order = present = None
    if valid is not None and needs_order(format):
        present, order = pack(valid.to(torch.uint8), 1), valid_first(valid).contiguous()
    valid = None if valid is None else valid.contiguous()
    channel = channel_sizes(x, valid) if format.separable else None
    codes, scale, lowest = launched(
        x, channel, valid, order, format.bits, format.axis, format.group or 0, format.shrink
    )
    return Quantised(format, x.shape[2], x.shape[3], codes, scale, lowest, channel, present)


def _outputs(x: Tensor, format: Format) -> _Made:
    """Codes, step and lowest value without contents."""
    lines, length = (x.shape[2], x.shape[3]) if format.axis == "token" else (x.shape[3], x.shape[2])
    groups = -(-length // format.size(length))
    kinds = stored_types(format, x.dtype)
    codes = x.new_empty(*x.shape[:2], lines, packed_bytes(length, format.bits), dtype=torch.uint8)
    scale, lowest = (x.new_empty(*x.shape[:2], lines, groups, dtype=kind) for kind in kinds)
    return codes, scale, lowest


def _format(bits: int, axis: str, group: int, shrink: float, separable: bool) -> Format:
    return Format(bits, axis, group or None, separable, shrink)  # type: ignore[arg-type]


def _launch(
    x: Tensor,
    channel: Tensor | None,
    valid: Tensor | None,
    order: Tensor | None,
    bits: int,
    axis: str,
    group: int,
    shrink: float,
) -> _Made:
    format = _format(bits, axis, group, shrink, channel is not None)
    made = _outputs(x, format)
    if x.numel():
        if axis == "token":
            _by_token(x, channel, valid, format, made)
        else:
            _by_channel(x, valid, order, format, made)
    return made


def _by_token(x: Tensor, channel: Tensor | None, valid: Tensor | None, format: Format, made: _Made) -> None:
    from vlm_eff.kernels.quantise.kernel import token_groups_kernel

    batch, heads, count, width = x.shape
    codes, scale, lowest = made
    tiles = lookup(TABLE, x.device, width, x.dtype)
    size, groups = format.size(width), scale.shape[3]
    members = _members(size)
    rows = max(tiles.m * tiles.n // members, 1)
    token_groups_kernel[(_up(count * groups, rows), batch * heads)](
        _words(x), _words(_or(channel, x)), _or(valid, x), codes, _words(scale), _words(lowest),
        heads, count, *x.stride()[:3], format.shrink,
        WIDTH=width, SIZE=size, GROUPS=groups, BYTES=codes.shape[3], BITS=format.bits, ROWS=rows, MEMBERS=members,
        ALL=size == members and groups * size == width, FUSED=_fused(scale),
        SEPARABLE=channel is not None, VALID=valid is not None, SHRINK=format.shrink < 1,
        KIND=_KINDS[x.dtype], SCALE=_KINDS[scale.dtype], LOWEST=_KINDS[lowest.dtype],
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=False,
    )  # fmt: skip


def _by_channel(x: Tensor, valid: Tensor | None, order: Tensor | None, format: Format, made: _Made) -> None:
    from vlm_eff.kernels.quantise.kernel import channel_extremes_kernel, channel_groups_kernel

    batch, heads, count, width = x.shape
    codes, scale, lowest = made
    tiles = lookup(TABLE, x.device, width, x.dtype)
    size, groups = format.size(count), scale.shape[3]
    members = _members(size)
    if members > _LONGEST:
        members = tiles.m
    pieces = _up(size, members)
    # every thread has all members of its channels, 64 numbers where groups are not longer
    side = 2 if members * 2 <= tiles.m else 1
    channels = max(min(width & -width, tiles.n), 16)
    together = max(32 * tiles.warps * side // channels, 1) if pieces == 1 else 1
    places = (_words(x), _or(order, x), _or(valid, x))
    lengths, strides = (heads, count, width, groups, pieces), x.stride()[:3]
    shape = {"SIZE": size if groups > 1 else 0, "MEMBERS": members, "CHANNELS": channels, "SIDE": side}
    read = {"ORDERED": order is not None, "VALID": valid is not None, "KIND": _KINDS[x.dtype]}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": False}
    if pieces > 1:
        low, high = x.new_empty(2, batch, heads, groups * pieces, width, dtype=torch.float32)
        grid = (groups * pieces, _up(width, channels), batch * heads)
        channel_extremes_kernel[grid](*places, low, high, *lengths, *strides, **shape, **read, **options)
        low, high = low.unflatten(2, (groups, pieces)).amin(3), high.unflatten(2, (groups, pieces)).amax(3)
        found = statistics(low.transpose(2, 3), high.transpose(2, 3), format, (scale.dtype, lowest.dtype))
        scale.copy_(found[0])
        lowest.copy_(found[1])
    grid = (_up(groups * pieces, together), _up(width, channels), batch * heads)
    channel_groups_kernel[grid](
        *places, codes, _words(scale), _words(lowest), *lengths, codes.shape[3], *strides, format.shrink,
        BITS=format.bits, PIECES=together, GIVEN=pieces > 1, FUSED=_fused(scale), SHRINK=format.shrink < 1,
        SCALE=_KINDS[scale.dtype], LOWEST=_KINDS[lowest.dtype], **shape, **read, **options,
    )  # fmt: skip


def _fused(scale: Tensor) -> bool:
    """Whether quotients can be had by fused products, which Triton's interpreter rounds twice."""
    return scale.dtype == torch.bfloat16 and not interpreting()


def _members(size: int) -> int:
    """Places of a tile for a group: a power of two, and whole bytes at 1 bit."""
    return max(1 << (size - 1).bit_length(), 8)


def _up(number: int, size: int) -> int:
    return -(-number // size)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A kernel takes no None: what it will not look at stands in."""
    if tensor is None:
        return other
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _words(tensor: Tensor) -> Tensor:
    """Bfloat16 as whole numbers: kernels read and write their bits."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _fake(
    x: Tensor,
    channel: Tensor | None,
    valid: Tensor | None,
    order: Tensor | None,
    bits: int,
    axis: str,
    group: int,
    shrink: float,
) -> _Made:
    return _outputs(x, _format(bits, axis, group, shrink, channel is not None))


def _flops(*args: object, out_shape: object = None, **kwargs: object) -> int:
    # no product of matrices: nothing is counted, as for every operation of its kind
    return 0


launched = register("quantise", _launch, fake=_fake, flops=_flops)
