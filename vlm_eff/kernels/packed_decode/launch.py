"""Launching the kernels: what lies where, how many spans there are, and which arguments they take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vlm_eff.kernels.packed_decode.pairs import ExactPair, PackedPair, Pair
from vlm_eff.kernels.packed_decode.tiles import EXACT, PACKED
from vlm_eff.kernels.quantise import Quantised
from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import lookup, why_no_tiles
from vlm_eff.kernels.triton_here import interpreting, why_not_dense

# query rows of one key head that fit a tile
ROWS = (16, 32, 64)
# entries of a span at least: partial results stay below a tenth of what is read
SPAN = 256
# programs at work on each multiprocessor
RESIDENT = 4
# unpack by inline PTX where it is known; until a GPU has compared it bit for bit with the portable form, off
ASM = False
# numbers that describe one segment to the registered operation, see `_described`
FIELDS = 11


@dataclass(frozen=True)
class Side:
    """Layout of keys or of values: bits (0: as they are), codes along channels, size of a group (0: all of a line)."""

    bits: int
    channel: bool
    group: int
    vector: bool

    def room(self, count: int, width: int) -> int:
        """Codes in a word: of 16 bits, or of 8 where lines have an odd number of bytes or planes would be thin.

        Four warps share a plane of 32; of a thinner one they would do the same work twice.
        """
        if not self.bits:
            return 1
        length = count if self.channel else width
        wide = 16 // self.bits
        thin = wide > 4 or (not self.channel and width // wide < 32)
        return 8 // self.bits if thin or -(-length * self.bits // 8) % 2 else wide


def limits(
    query: Tensor, segments: Sequence[Pair], *, scaling: float, softcap: float | None = None, return_lse: bool = False
) -> str | None:
    """What the kernel does not take."""
    for pair in segments:
        for side in (pair.key, pair.value):
            if isinstance(side, Quantised) and side.place is not None:
                return "groups with outliers that are kept exactly"
            if isinstance(side, Quantised) and side.codes.shape[-1] > 1 and side.codes.stride(-1) != 1:
                return f"codes whose last axis has stride {side.codes.stride(-1)}"
            if isinstance(side, Tensor) and (reason := why_not_dense(query, side)) is not None:
                return reason
        if isinstance(pair, PackedPair) and (reason := _mismatch(pair)) is not None:
            return reason
        if (wide := pair.value.width if isinstance(pair, PackedPair) else pair.value.shape[3]) != query.shape[3]:
            return f"values of width {wide} for keys of width {query.shape[3]}"
    if (reason := why_not_dense(query.contiguous())) is not None:
        return reason
    if query.dtype == torch.float32 and not interpreting():
        return "float32, whose products are not on tensor cores and need more registers than there are"
    if query.shape[3] % 8:
        return f"heads of width {query.shape[3]}, no multiple of 8"
    shared = _heads(segments[0]) if segments else query.shape[1]
    if (rows := query.shape[1] // shared * query.shape[2]) > ROWS[-1]:
        return f"{rows} query rows a key head, more than {ROWS[-1]}"
    return why_no_tiles(PACKED, query.device, query.shape[3], query.dtype)


def _mismatch(pair: PackedPair) -> str | None:
    key, value = pair.key, pair.value
    if key.format.axis == value.format.axis == "channel":
        if key.format.bits != value.format.bits:
            return "keys and values by channel in different bits"
        if (key.present is None) != (value.present is None):
            return "keys and values by channel in different orders"
    return None


def _heads(pair: Pair) -> int:
    return (pair.key if isinstance(pair, ExactPair) else pair.key.codes).shape[1]


def packed_decode(
    query: Tensor, segments: Sequence[Pair], *, scaling: float, softcap: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """See `op.py`."""
    tensors: list[Tensor] = []
    layout: list[int] = []
    for pair in segments:
        if pair.count:
            _describe(pair, tensors, layout)
    output, total = LAUNCHED(query.contiguous(), tensors, layout, scaling, softcap)
    return (output, total) if return_lse else output


def _describe(pair: Pair, tensors: list[Tensor], layout: list[int]) -> None:
    """Append what a segment consists of, in the order that `_launch` takes it out again."""
    order = None
    for side in (pair.key, pair.value):
        if isinstance(side, Tensor):
            tensors.append(side)
            layout += [0, 0, 0, 0]
            continue
        length = side.width if side.format.axis == "token" else side.count
        size = side.format.size(length)
        tensors += [side.codes, side.scale.contiguous(), side.lowest.contiguous()]
        if side.channel is not None:
            tensors.append(side.channel.contiguous())
        order = side.order() if order is None else order
        layout += [side.format.bits, side.format.axis == "channel", 0 if size >= length else size]
        layout.append(side.channel is not None)
    if pair.bias is not None:
        tensors.append(pair.bias)
    if order is not None:
        tensors.append(order.int())
    layout += [pair.bias is not None, order is not None, pair.count]


def _launch(
    query: Tensor, tensors: list[Tensor], layout: list[int], scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """A program for each span of each segment, and one for each query row that joins them.

    Nothing is asked of the device: the same shapes make the same launches, and a CUDA graph can hold them.
    """
    from vlm_eff.kernels.packed_decode.kernel import join_spans

    batch, heads, asked, width = query.shape
    segments = list(_segments(tensors, layout))
    shared = segments[0].key.codes.shape[1] if segments else heads
    rows = heads // shared * asked
    plans = [_plan(one, query, batch * shared) for one in segments]
    slots = sum(plan.spans for plan in plans)
    parts = query.new_empty(batch * shared, slots, rows, width, dtype=torch.float32)
    shares = query.new_empty(batch * shared, slots, rows, dtype=torch.float32)
    output, total = _fake(query, tensors, layout, scaling, softcap)
    first = 0
    for one, plan in zip(segments, plans, strict=True):
        _launch_spans(query, one, plan, (parts, shares, first), (scaling, softcap))
        first += plan.spans
    join_spans[(batch * heads * asked,)](
        parts, shares, output, total, rows, slots,
        WIDTH=width, WIDE=_power(width), BN=32, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return output, total


@dataclass(frozen=True)
class _Part:
    """Keys or values of a segment: codes (or numbers), scale, lowest value and divisor of channels."""

    side: Side
    codes: Tensor
    scale: Tensor | None
    lowest: Tensor | None
    vector: Tensor | None


@dataclass(frozen=True)
class _Segment:
    key: _Part
    value: _Part
    bias: Tensor | None
    order: Tensor | None
    count: int


@dataclass(frozen=True)
class _Plan:
    """Spans of a segment, tiles of each, entries and stages of a tile, warps of a program."""

    spans: int
    tiles: int
    entries: int
    stages: int
    warps: int


def _segments(tensors: list[Tensor], layout: list[int]) -> Iterator[_Segment]:
    left = iter(tensors)
    for at in range(0, len(layout), FIELDS):
        numbers = layout[at : at + FIELDS]
        parts = []
        for bits, channel, group, vector in (numbers[:4], numbers[4:8]):
            side = Side(bits, bool(channel), group, bool(vector))
            codes = next(left)
            scale, lowest = (next(left), next(left)) if bits else (None, None)
            parts.append(_Part(side, codes, scale, lowest, next(left) if vector else None))
        biased, ordered, count = numbers[8:]
        bias = next(left) if biased else None
        yield _Segment(parts[0], parts[1], bias, next(left) if ordered else None, count)


def _plan(one: _Segment, query: Tensor, pairs: int) -> _Plan:
    """How many spans a segment is cut into: a matter of shapes alone."""
    width, sides = query.shape[3], (one.key.side, one.value.side)
    tiles = lookup(PACKED if one.key.side.bits else EXACT, query.device, width, query.dtype)
    places = max([1, *(side.room(one.count, width) for side in sides if side.channel)])
    entries = max(tiles.n, 32 * places)
    if any(side.group and not (side.channel and side.group % 64 == 0) for side in sides):
        # scales met number by number take registers
        entries = max(min(entries, 64), 16 * places)
    for side in sides:
        # where a group of a channel is a whole number of tiles, its scale is folded into the other factor
        while side.channel and side.group and side.group % entries and entries > 64 and entries // 2 >= 16 * places:
            entries //= 2
    count = -(-one.count // entries)
    spans = max(1, min(_processors(query.device) * RESIDENT // pairs, one.count // SPAN, count))
    each = -(-count // spans)
    return _Plan(-(-count // each), each, entries, tiles.stages, tiles.warps)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _launch_spans(
    query: Tensor, one: _Segment, plan: _Plan, into: tuple[Tensor, Tensor, int], logits: tuple[float, float | None]
) -> None:
    from vlm_eff.kernels.packed_decode.kernel import packed_spans

    batch, heads, asked, width = query.shape
    shared = one.key.codes.shape[1]
    n, (parts, shares, first), (scaling, softcap) = heads // shared, into, logits
    rows = n * asked
    bias = one.bias
    strides = (0,) * 5
    if bias is not None:
        by_head = (n * bias.stride(1), bias.stride(1)) if bias.shape[1] == heads else (bias.stride(1), 0)
        by_head = (0, 0) if bias.shape[1] == 1 else by_head
        strides = (bias.stride(0), *by_head, 0 if bias.shape[2] == 1 else bias.stride(2), bias.stride(3))
    key, value = (_read(part, one.count, width, plan.entries) for part in (one.key, one.value))
    packed_spans[(plan.spans, batch * shared)](
        query, *(query if tensor is None else tensor for tensor in (*key.tensors, *value.tensors, bias, one.order)),
        parts, shares, scaling if softcap else scaling * math.log2(math.e), softcap or 1.0,
        shared, rows, asked, one.count, plan.tiles, first, parts.shape[1],
        *key.numbers, *value.numbers, *strides,
        WIDTH=width, BG=next(size for size in ROWS if size >= rows), BN=plan.entries, STAGES=plan.stages, ASM=ASM,
        **{f"KEY_{name}": number for name, number in key.constants.items()},
        **{f"VALUE_{name}": number for name, number in value.constants.items()},
        BIASED=bias is not None, ORDERED=one.order is not None, CAPPED=softcap is not None,
        num_warps=plan.warps, num_stages=plan.stages, enable_fp_fusion=True,
    )  # fmt: skip


@dataclass(frozen=True)
class _Read:
    """What the kernel is told of keys or of values."""

    tensors: tuple[Tensor | None, ...]
    numbers: tuple[int, ...]
    constants: dict[str, int | bool]


def _read(part: _Part, count: int, width: int, entries: int) -> _Read:
    side, codes = part.side, part.codes
    room = side.room(count, width)
    if side.bits * room == 16:
        codes = codes.view(torch.int16)
    length = count if side.channel else width
    groups = -(-length // side.group) if side.group else 1
    mode = 2
    if not side.bits:
        mode = 0
    elif not side.group or (side.channel and side.group % entries == 0):
        mode = 1
    plane = max(16, _power(width if side.channel else -(-width // room)))
    return _Read(
        (codes, part.scale, part.lowest, part.vector),
        (*codes.stride()[:3], codes.shape[3], groups, groups * (width if side.channel else count)),
        {
            "BITS": side.bits, "ROOM": room, "CHANNEL": side.channel, "MODE": mode, "GROUP": side.group,
            "PLANE": plane, "HAS": side.vector,
        },
    )  # fmt: skip


def _fake(
    query: Tensor, tensors: list[Tensor], layout: list[int], scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)


def _flops(query: Any, tensors: Any, layout: list[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two products with every entry, fillers included; unpacking is no floating-point work."""
    batch, heads, rows, width = query
    return 4 * batch * heads * rows * width * sum(layout[FIELDS - 1 :: FIELDS])


LAUNCHED = register("packed_decode", _launch, fake=_fake, flops=_flops)
