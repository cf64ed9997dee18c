"""Cache entries in few bits: quantised once, packed, read back. Every row and head is independent of every other.

A line is what groups divide: the width of one entry (token groups) or the entries of one channel (channel groups).
Statistics are float32; they are rounded to the types they are stored in, and the codes are made with the rounded ones,
so that reading and writing agree. Lowest values are rounded down and scales up (official codes round to the nearest):
then every number lies inside its group's grid and is read back within half a step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.format import Format, place_type, stored_types
from vlm_eff.kernels.pack import pack, unpack


@dataclass(frozen=True)
class Quantised:
    """Entries in few bits; the first axis of every tensor is the row of the batch. Made by `quantise`, never changed.

    format, count, width: how, how many entries P, how many numbers each Dh
    codes:    [B, Hkv, lines, bytes] uint8, packed along the lines
    scale, lowest: [B, Hkv, lines, groups] step and lowest value of each group
    channel:  [B, Hkv, 1, Dh] what each channel was divided by (`Format.separable`), or None
    present:  [B, Hkv, bytes] uint8, a bit for each entry that is no filler; None where all are, or nobody needs it
    place, exact: [B, Hkv, lines, groups, kept] place inside the group (-1: none) and value of the outliers, or None
    """

    format: Format
    count: int
    width: int
    codes: Tensor
    scale: Tensor
    lowest: Tensor
    channel: Tensor | None = None
    present: Tensor | None = None
    place: Tensor | None = None
    exact: Tensor | None = None

    def read(self, dtype: torch.dtype) -> Tensor:
        """The entries [B, Hkv, P, Dh] in `dtype`. Fillers are finite numbers without meaning."""
        length = self.width if self.format.axis == "token" else self.count
        size = self.format.size(length)
        codes = unpack(self.codes, self.format.bits, length)
        groups = _groups(codes, size, 0).float()
        lines = (groups * self.scale.float()[..., None] + self.lowest.float()[..., None]).flatten(-2)
        if self.channel is not None:
            lines = lines[..., :length] * self.channel.float()
        lines = _groups(lines[..., :length], size, 0.0)
        if self.place is not None and self.exact is not None:
            lines = _put(lines.to(torch.promote_types(lines.dtype, self.exact.dtype)), self.place, self.exact)
        # a step rounded up may lead beyond the largest number of a small type
        limit = min(torch.finfo(dtype).max, torch.finfo(lines.dtype).max)
        lines = lines.flatten(-2)[..., :length].clamp(-limit, limit).to(dtype)
        if self.format.axis == "token":
            return lines
        if self.present is not None:
            front = _front(unpack(self.present, 1, self.count).bool())
            # the place of an entry among those that were moved to the front
            lines = lines.gather(-1, front.argsort(-1)[:, :, None].expand_as(lines))
        return lines.transpose(2, 3).contiguous()

    def select(self, rows: Tensor) -> Quantised:
        """The given rows [N] of the batch, in that order; a row may come several times."""
        chosen = {name: tensor.index_select(0, rows.to(tensor.device)) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **chosen)  # type: ignore[arg-type]

    def buffers(self) -> list[Tensor]:
        """Every tensor that is stored."""
        return list(self._tensors().values())

    @property
    def bytes(self) -> int:
        """Bytes stored, statistics and everything else included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.buffers())

    def _tensors(self) -> dict[str, Tensor]:
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}


def quantise(x: Tensor, format: Format, valid: Tensor | None = None) -> Quantised:
    """Quantise cache entries [B, Hkv, P, Dh] once.

    valid: [B, Hkv, P] bool, False for fillers, which touch no statistics. Groups of channels are formed along the
    entries of a row and head that are valid, in their order, so that a row is stored as it would be alone.
    The last group of a line may be shorter and has statistics of its own. A group of equal numbers is exact. A number
    that is not finite spoils its own group, which is read back as NaN, and no other.
    Conventions: KIVI (arXiv 2402.02750, section 3; ZipCache, arXiv 2405.14256, section 4.2, for `separable`, where we
    take groups of one head instead of all heads together, so that heads stay independent).

    Raises:
        InputError: `x` is no floating tensor of four axes, or `valid` does not fit it.
    """
    _check(x, valid)
    present = None
    if valid is None or bool(valid.all()):
        valid = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
    elif format.axis == "channel" and format.group is not None:
        present, front = pack(valid.to(torch.uint8), 1), _front(valid)
        x, valid = x.gather(2, front[..., None].expand_as(x)), valid.gather(2, front)
    if format.axis == "token":
        lines, known = x, valid[..., None].expand_as(x)
    else:
        lines, known = x.transpose(2, 3), valid[:, :, None].expand(*x.shape[:2], x.shape[3], x.shape[2])
    size = format.size(lines.shape[-1])
    channel = _channels(x, valid) if format.separable else None
    scaled = lines.float() if channel is None else lines.float() / channel.float()
    grouped, known = _groups(scaled, size, 0.0), _groups(known, size, False)
    place = exact = None
    if format.outliers:
        place = _outliers(grouped, known, format)
        exact = _groups(lines, size, 0.0).gather(-1, place.clamp(min=0)).masked_fill(place < 0, 0.0)
        known = _put(known, place, torch.zeros_like(place, dtype=torch.bool))
        place = place.to(place_type(size))
    scale, lowest = _statistics(grouped, known, format, stored_types(format, x.dtype))
    steps = ((grouped - lowest.float()[..., None]) / scale.float()[..., None]).round()
    codes = steps.nan_to_num(0.0).clamp(0, format.highest).masked_fill(~known, 0.0).to(torch.uint8)
    packed = pack(codes.flatten(-2)[..., : lines.shape[-1]], format.bits)
    return Quantised(format, x.shape[2], x.shape[3], packed, scale, lowest, channel, present, place, exact)


def _statistics(
    grouped: Tensor, known: Tensor, format: Format, types: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Step and lowest value of each group [..., groups, size] -> [..., groups], as they are stored."""
    low = grouped.masked_fill(~known, torch.inf).amin(-1)
    high = grouped.masked_fill(~known, -torch.inf).amax(-1)
    empty = ~known.any(-1)
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)
    if format.shrink < 1:
        middle, half = (low + high) / 2, (high - low) / 2 * format.shrink
        low, high = middle - half, middle + half
    lowest = _round(low, types[1], up=False)
    # where all are equal a step of 0 would make NaN, which as a number of whole bits harms others
    step = (high - lowest.float()) / format.highest
    # and a step that is not finite makes NaN of each code of its group, 0 included
    return _round(torch.where(step == 0, 1.0, step), types[0], up=True), lowest


def _round(values: Tensor, dtype: torch.dtype, *, up: bool) -> Tensor:
    """Float32 numbers in a smaller type, never rounded to the wrong side."""
    made = values.to(dtype)
    wrong = made.float() < values if up else made.float() > values
    beyond = torch.full_like(made, torch.inf if up else -torch.inf)
    return torch.where(wrong, torch.nextafter(made, beyond), made)


def _channels(x: Tensor, valid: Tensor) -> Tensor:
    """Root of the largest magnitude of each channel among the valid entries [B, Hkv, 1, Dh], 1 where it is 0."""
    known = valid[..., None] & x.isfinite()
    largest = x.float().abs().masked_fill(~known, 0.0)
    largest = torch.cat([largest, largest.new_zeros(*x.shape[:2], 1, x.shape[3])], 2).amax(2, keepdim=True)
    root = largest.sqrt().to(torch.float32 if x.dtype == torch.float64 else x.dtype)
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


def _put(grouped: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """A copy of `grouped` [..., size] with `values` [..., kept] at `place`; places of -1 are left out."""
    spare = torch.cat([grouped, grouped[..., :1]], -1)
    target = torch.where(place < 0, grouped.shape[-1], place.long())
    return spare.scatter(-1, target, values.to(grouped.dtype))[..., :-1]


def _groups(lines: Tensor, size: int, fill: float) -> Tensor:
    """Lines [..., N] -> [..., groups, size]; the last group is filled up."""
    spare = -lines.shape[-1] % size
    if spare:
        lines = torch.nn.functional.pad(lines, (0, spare), value=fill)
    return lines.unflatten(-1, (lines.shape[-1] // size, size))


def _front(valid: Tensor) -> Tensor:
    """Order [B, Hkv, P] that brings the valid entries to the front and leaves their own order."""
    return (~valid).to(torch.int8).argsort(dim=-1, stable=True)


def _check(x: Tensor, valid: Tensor | None) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        got = f"a tensor of shape {list(x.shape)} and type {x.dtype}"
        raise InputError(explain(got, "floating numbers [B, Hkv, P, Dh]", "Give keys or values of one layer"))
    if valid is not None and (valid.shape != x.shape[:3] or valid.dtype != torch.bool):
        got = f"valid of shape {list(valid.shape)} and type {valid.dtype} for entries {list(x.shape)}"
        raise InputError(explain(got, "bool [B, Hkv, P]", "Give one truth value for each entry of each head"))
