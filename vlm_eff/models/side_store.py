"""Tokens that were dropped before a layer, kept beside its cache so that they can come back."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vlm_eff.importance.select import from_mask


@dataclass(frozen=True)
class Tokens:
    """Tokens on their way into a layer.

    hidden:   [B, M, D] at the layer's input       position: [B, M] logical positions
    cos, sin: [B, M, Dr] their rotary tables       valid: [B, M] False for a filler
    """

    hidden: Tensor
    position: Tensor
    cos: Tensor
    sin: Tensor
    valid: Tensor

    @property
    def width(self) -> int:
        """M: the largest count of a row."""
        return self.position.shape[1]

    def take(self, columns: Tensor, valid: Tensor) -> Tokens:
        """The tokens at `columns` [B, K], of which `valid` [B, K] exist."""
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        parts = {f.name: getattr(self, f.name)[rows, columns] for f in fields(self)}
        return Tokens(**parts | {"valid": valid & parts["valid"]})

    def only(self, wanted: Tensor) -> Tokens:
        """The tokens marked in `wanted` [B, M], closed up."""
        found = from_mask(wanted & self.valid)
        return self.take(found.index, found.valid)

    def join(self, other: Tokens) -> Tokens:
        """These tokens, then the others."""
        return Tokens(*(torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)))

    def rows(self, rows: Tensor) -> Tokens:
        """Take batch rows."""
        return Tokens(*(getattr(self, f.name).index_select(0, rows) for f in fields(self)))


@dataclass(frozen=True)
class SideStore:
    """What one stage dropped and did not bring back.

    tokens:   the dropped tokens
    position: [B, V] logical positions of every visual candidate the cache has seen, ascending; valid: which exist
    """

    tokens: Tokens
    position: Tensor
    valid: Tensor

    @property
    def bytes(self) -> int:
        """Memory that the store takes."""
        held = [getattr(self.tokens, f.name) for f in fields(self.tokens)]
        return sum(t.numel() * t.element_size() for t in (*held, self.position, self.valid))

    def select(self, rows: Tensor) -> SideStore:
        """Take batch rows, as beam search does."""
        rows = rows.to(self.position.device)
        taken = (t.index_select(0, rows) for t in (self.position, self.valid))
        return SideStore(self.tokens.rows(rows), *taken)

    def join(self, later: SideStore) -> SideStore:
        """Add what a later image left behind."""
        position, valid = (torch.cat([getattr(self, n), getattr(later, n)], 1) for n in ("position", "valid"))
        return SideStore(self.tokens.join(later.tokens), position, valid)

    def holding(self, tokens: Tokens) -> SideStore:
        """The same store with other tokens in it."""
        return replace(self, tokens=tokens)


def column_of(position: Tensor, valid: Tensor, wanted: Tensor, total: int) -> Tensor:
    """Column of `position` [B, N] at which each of `wanted` [B, V] stands; -1 for those that are not there."""
    table = torch.full((len(position), total + 1), -1, dtype=torch.long, device=position.device)
    place = torch.arange(position.shape[1], device=position.device).expand_as(position)
    table.scatter_(1, torch.where(valid, position, total), place)
    table[:, total] = -1
    return table.gather(1, wanted)
