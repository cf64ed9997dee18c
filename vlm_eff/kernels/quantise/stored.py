"""Entries in few bits, as they are stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.kernels.format import Format
from vlm_eff.kernels.pack import unpack
from vlm_eff.kernels.quantise.lines import in_groups, put, valid_first


@dataclass(frozen=True)
class Quantised:
    """Entries in few bits; the first axis of every tensor is the row of the batch. Made by `quantise`, never changed.

    format, count, width: how, how many entries P, how many numbers each Dh
    codes:    [B, Hkv, lines, bytes] uint8, packed along the lines
    scale, lowest: [B, Hkv, lines, groups] step and lowest value of each group
    channel:  [B, Hkv, 1, Dh] what each channel was divided by (`Format.separable`), or None
    present:  [B, Hkv, bytes] uint8, a bit for each entry that is no filler; None where all are, or nobody needs it
    place, exact: [B, Hkv, lines, groups, kept] place inside the group (-1: none) and value of the outliers, or None
    runs:     entries of parts that were joined, each of which has its fillers at its end; () for one
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
    runs: tuple[int, ...] = ()

    def read(self, dtype: torch.dtype) -> Tensor:
        """The entries [B, Hkv, P, Dh] in `dtype`. Fillers are finite numbers without meaning."""
        length = self.width if self.format.axis == "token" else self.count
        size = self.format.size(length)
        codes = unpack(self.codes, self.format.bits, length)
        groups = in_groups(codes, size, 0).float()
        lines = (groups * self.scale.float()[..., None] + self.lowest.float()[..., None]).flatten(-2)
        if self.channel is not None:
            lines = lines[..., :length] * self.channel.float()
        lines = in_groups(lines[..., :length], size, 0.0)
        if self.place is not None and self.exact is not None:
            lines = put(lines.to(torch.promote_types(lines.dtype, self.exact.dtype)), self.place, self.exact)
        # a step rounded up may lead beyond the largest number of a small type
        limit = min(torch.finfo(dtype).max, torch.finfo(lines.dtype).max)
        lines = lines.flatten(-2)[..., :length].clamp(-limit, limit).to(dtype)
        if self.format.axis == "token":
            return lines
        if (order := self.order()) is not None:
            # the place of an entry among those that were moved to the front
            lines = lines.gather(-1, order.argsort(-1)[:, :, None].expand_as(lines))
        return lines.transpose(2, 3).contiguous()

    def order(self) -> Tensor | None:
        """The entry [B, Hkv, P] int64 at each place of a line of one channel; None where it is the place itself."""
        return None if self.present is None else valid_first(unpack(self.present, 1, self.count).bool(), self.runs)

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
