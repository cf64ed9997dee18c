"""Which original tokens are still present, and where: the one map between logical and physical positions of a call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_eff.kernels.compact import compact


@dataclass(frozen=True)
class Registers:
    """Which physical slots hold registers: appended tokens that stand on the logical slot of a visual token.

    mark:    [B, N] True at a register        anchor: [B, 1] logical slot of the row's last visual token
    guests:  True while the visual tokens are there too and own the places
    count:   registers of a row that has any
    ordered: nobody sees a register that comes later (False where a prefix is attended in both directions)
    """

    mark: Tensor
    anchor: Tensor
    guests: bool
    count: int
    ordered: bool


@dataclass(frozen=True)
class TokenMap:
    """Survivors of one forward call.

    index:  [B, N] logical slot (0 <= slot < length) of each physical slot, ascending among the valid ones (registers
            come after all visual tokens, on the slots of the last ones)
    valid:  [B, N] False for a filler: a slot that only keeps rows of different counts rectangular. Fillers come first,
            so the last column is the last prompt token of every row.
    length: logical length S of the call
    ragged: True when there is any filler (a host flag: the hot path must not ask the device)
    """

    index: Tensor
    valid: Tensor
    length: int
    ragged: bool
    registers: Registers | None = None

    @classmethod
    def identity(cls, rows: int, length: int, device: torch.device) -> TokenMap:
        """The map of a call in which nothing was dropped."""
        index = torch.arange(length, device=device).expand(rows, length)
        return cls(index, torch.ones_like(index, dtype=torch.bool), length, ragged=False)

    @property
    def size(self) -> int:
        """Physical length N."""
        return self.index.shape[1]

    @property
    def owner(self) -> Tensor:
        """True where a physical slot owns its logical one [B, N]: neither a filler nor a guest."""
        if self.registers is None or not self.registers.guests:
            return self.valid
        return self.valid & ~self.registers.mark

    @property
    def rows(self) -> Tensor:
        """Logical slot whose mask row each physical slot takes [B, N]: a register has that of the last image token."""
        if self.registers is None:
            return self.index
        return torch.where(self.registers.mark, self.registers.anchor, self.index)

    @property
    def guests(self) -> int:
        """Registers of a row that stand on places of tokens that are still there."""
        return self.registers.count if self.registers is not None and self.registers.guests else 0

    @property
    def fillers(self) -> int:
        """Filler slots over all rows (asks the device)."""
        return int((~self.valid).sum()) if self.ragged else 0

    def narrow(self, keep: Tensor) -> tuple[TokenMap, Tensor]:
        """Keep the physical slots marked in `keep` [B, N].

        Returns the new map and the physical slots [B, n] to gather from tensors in the old layout.
        """
        keep = keep & self.valid
        count = keep.sum(1)
        width = int(count.max())
        # a stable sort puts dropped slots first and kept ones last, each in ascending order
        order = torch.argsort(keep.to(torch.int8), dim=1, stable=True)[:, self.size - width :]
        valid = keep.gather(1, order)
        registers = self.registers
        if registers is not None:
            registers = replace(registers, mark=registers.mark.gather(1, order) & valid)
        ragged = bool((count != width).any())
        return TokenMap(self.index.gather(1, order), valid, self.length, ragged, registers), order

    def gather(self, tensor: Tensor) -> Tensor:
        """Take the survivors of a full-length tensor [B or 1, S, ...]."""
        return compact([tensor], self.index)[0]

    def scatter(self, tensor: Tensor) -> Tensor:
        """Put `tensor` [B, N, ...] back to full length [B, S, ...]; dropped places are zero."""
        full = tensor.new_zeros(tensor.shape[0], self.length + 1, *tensor.shape[2:])
        # fillers and guests go to a spare column that is cut off again
        target = torch.where(self.owner, self.index, self.length) if self.ragged or self.guests else self.index
        full.scatter_(1, _expand(target, tensor), tensor)
        return full[:, : self.length]

    def physical(self, slots: Tensor) -> Tensor:
        """Physical slot of each logical slot [B, M]; meaningless for slots that were dropped."""
        inverse = self.index.new_zeros(self.index.shape[0], self.length + 1)
        target = torch.where(self.owner, self.index, self.length)
        inverse.scatter_(1, target, torch.arange(self.size, device=self.index.device).expand_as(target).contiguous())
        return inverse.gather(1, slots)


def gather_slots(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gather `index` [B, N] along `dim` of a tensor whose dimension 0 is the batch (or 1)."""
    if tensor.shape[0] != index.shape[0]:
        tensor = tensor.expand(index.shape[0], *tensor.shape[1:])
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = index.shape
    sizes = list(tensor.shape)
    sizes[dim] = index.shape[1]
    return tensor.gather(dim, index.view(shape).expand(sizes))


def _expand(index: Tensor, like: Tensor) -> Tensor:
    return index.view(*index.shape, *([1] * (like.dim() - 2))).expand(*index.shape, *like.shape[2:])
