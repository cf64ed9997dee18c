"""What became of the tokens of one run of a tower: which are left, what each stands for, and the way back.

All tensors are padded rows: I images (frames of a video count one by one), N tokens of the bare tower, T tokens left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_eff.core.tower import TowerAction, TowerMerge
from vlm_eff.kernels.merge import merge_tokens
from vlm_eff.models.vit.layout import Layout, Packed, Rows


@dataclass(frozen=True)
class Tokens:
    """Tokens that are left.

    full, now: layout of the bare tower's tokens, and of those that are left
    slot:   [I, N] column that each original token became part of; -1: dropped, its last state is in `parked`
    place:  [I, T] original place of each token that is left, for its position and its window
    size:   [I, T] float32, how many original tokens it stands for
    parked: [I, N, D] states of dropped tokens when they were dropped; None when none was
    proportional: attention is to count sizes
    """

    full: Layout
    now: Layout
    slot: Tensor
    place: Tensor
    size: Tensor
    parked: Tensor | None = None
    proportional: bool = False

    @classmethod
    def all(cls, full: Layout, device: torch.device) -> Tokens:
        """Before anything was reduced."""
        images, width = len(full.lengths), max(full.lengths)
        place = torch.arange(width, device=device).expand(images, -1)
        size = torch.ones(images, width, device=device)
        return cls(full, full, place, place, size if full.valid is None else size * full.valid)

    @property
    def reduced(self) -> bool:
        """True once something was merged or dropped."""
        return self.now is not self.full

    def restore(self, hidden: Tensor) -> Tensor:
        """States of what is left [I, T, D] to all original tokens [I, N, D]: each gets that of what it is part of."""
        index = self.slot.clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[2])
        made = hidden.gather(1, index)
        return made if self.parked is None else torch.where(self.slot[:, :, None] < 0, self.parked, made)

    def after(self, action: TowerAction, hidden: Tensor) -> Tokens:
        """The tokens once `action` was carried out; `hidden` [I, T, D] are the states that dropped tokens keep."""
        index, into = action.index, action.into
        place, size = self.place.gather(1, index), self.size
        if isinstance(action, TowerMerge):
            size = _sums(action, size)
        else:
            size = size.gather(1, index)
            size = size if action.valid is None else size * action.valid
            if action.fuse is not None:
                # the new token stands where the heaviest of its parts was
                at = action.fuse.argmax(1, keepdim=True)
                place = _append(place, self.place.gather(1, at), action.valid)
                size = _append(size, torch.ones_like(size[:, :1]), action.valid)
        slot = torch.where(self.slot < 0, -1, into.gather(1, self.slot.clamp(min=0)))
        parked = self.parked
        if not isinstance(action, TowerMerge) and bool((into < 0).any()):
            gone = (slot < 0) & (self.slot >= 0)
            last = hidden.gather(1, self.slot.clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[2]))
            parked = torch.where(gone[:, :, None], last, last if parked is None else parked)
        return replace(
            self,
            now=self._layout(action, place.shape[1]),
            slot=slot,
            place=place,
            size=size,
            parked=parked,
            proportional=self.proportional or (isinstance(action, TowerMerge) and action.proportional),
        )

    def _layout(self, action: TowerAction, width: int) -> Layout:
        valid, more = action.valid, int(getattr(action, "fuse", None) is not None)
        if isinstance(self.full, Packed):
            kept = [width - more] * len(self.full.counts) if valid is None else valid.sum(1).tolist()
            return Packed(tuple(count + more for count in kept), self.full.batched, self.full.device)
        if valid is None or bool(valid.all()):
            return Rows(self.full.images, width)
        columns = torch.arange(width, device=valid.device)
        return Rows(self.full.images, width, columns < valid.sum(1, keepdim=True) + more)


def reduce(action: TowerAction, hidden: Tensor, size: Tensor) -> Tensor:
    """States [I, T, D] to those of what is left [I, K, D]: gathered, or averaged by size."""
    if isinstance(action, TowerMerge):
        return merge_tokens(hidden, action.into, action.index.shape[1], size)[0]
    made = hidden.gather(1, action.index[:, :, None].expand(-1, -1, hidden.shape[2]))
    if action.fuse is None:
        return made
    fused = (action.fuse.to(hidden.dtype)[:, :, None] * hidden).sum(1, keepdim=True)
    return _append(made, fused, action.valid)


def spread(action: TowerAction, made: Tensor) -> Tensor:
    """Something of what is left [I, K, D] at every token it was made from [I, T, D]; zero at dropped tokens.

    What belongs to a fused token goes to its heaviest part.
    """
    into = action.into
    if isinstance(action, TowerMerge):
        return made.gather(1, into[:, :, None].expand(-1, -1, made.shape[2]))
    own = torch.full_like(into, -1)
    columns = torch.arange(action.index.shape[1], device=into.device).expand_as(action.index)
    if action.valid is not None:
        spare = torch.cat([own, own[:, :1]], 1)
        own = spare.scatter(1, torch.where(action.valid, action.index, into.shape[1]), columns)[:, :-1]
    else:
        own = own.scatter(1, action.index, columns)
    if action.fuse is not None:
        own = own.scatter(1, action.fuse.argmax(1, keepdim=True), _last(action)[:, None])
    found = made.gather(1, own.clamp(min=0)[:, :, None].expand(-1, -1, made.shape[2]))
    return found.masked_fill(own[:, :, None] < 0, 0.0)


def settle(action: TowerAction, before: Tensor, after: Tensor, size: Tensor) -> Tensor:
    """Output of a block [I, T, D] to that of what is left, when its MLP ran on what is left.

    before: the input of the MLP's norm [I, T, D], with the residual stream; after: the block's output. All tokens that
    were merged got the same MLP output, so their weighted mean is the merged stream plus that output.
    """
    made = reduce(action, after, size)
    fuse = getattr(action, "fuse", None)
    if fuse is None:
        return made
    at = fuse.argmax(1)[:, None, None].expand(-1, 1, after.shape[2])
    fused = (fuse.to(before.dtype)[:, :, None] * before).sum(1, keepdim=True) + (after - before).gather(1, at)
    return made.scatter(1, _last(action)[:, None, None].expand(-1, 1, after.shape[2]), fused)


def _sums(action: TowerMerge, size: Tensor) -> Tensor:
    """Sizes of what is left [I, K]; padding columns add nothing."""
    return size.new_zeros(action.index.shape).scatter_add_(1, action.into, size)


def _last(action: TowerAction) -> Tensor:
    """Column of the fused token in each image [I]."""
    if action.valid is None:
        return torch.full((len(action.index),), action.index.shape[1], device=action.index.device)
    return action.valid.sum(1)


def _append(kept: Tensor, one: Tensor, valid: Tensor | None) -> Tensor:
    """Put `one` [I, 1, ...] behind the valid columns of `kept` [I, K, ...]."""
    wide = torch.cat([kept, one], 1)
    if valid is None:
        return wide
    at = valid.sum(1).view(-1, 1, *([1] * (kept.dim() - 2))).expand_as(one)
    return wide.scatter(1, at, one)
