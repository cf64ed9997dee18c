"""Cache entries as few coefficients each and one basis a head: factorised once, multiplied out when a layer attends.

Keys are factorised before rotation, where they have the lower rank, and rotated again to their places when they are
read. Which error of a key matters is said by the queries that look at it: see `Rotary.before`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.errors import StateError, explain
from vlm_eff.importance.low_rank import LowRank, factorise, query_metric, stored_numbers
from vlm_eff.importance.select import from_mask
from vlm_eff.kernels.compact import compact
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.kv.segments import Segment
from vlm_eff.models.kv.view import Entries

# what an entry counts that nobody looked at yet, of the mean
_FLOOR = 1e-4


@dataclass(frozen=True)
class LowRankSegment(Segment):
    """Entries whose keys, before rotation, and values are coefficients [B, Hkv, P, r] times a basis [B, Hkv, r, Dh]."""

    key: Tensor
    key_basis: Tensor
    value: Tensor
    value_basis: Tensor

    def read(self, dtype: torch.dtype, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        if rotary is None:
            raise StateError(
                explain(
                    "keys stored before rotation, and no rotary positions to turn them",
                    "a handle whose plugins record positions",
                    "Use the cache under the handle that compressed it",
                )
            )
        key = rotary.forth(self.key.float() @ self.key_basis.float(), self.position)
        return key.to(dtype), (self.value.float() @ self.value_basis.float()).to(dtype)

    def extra_flops(self, rows: int) -> int:
        return 2 * sum(part.numel() * basis.shape[3] for part, basis in self._parts())

    def _parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.key, self.key_basis), (self.value, self.value_basis)

    def contents(self) -> list[Tensor]:
        return [self.key, self.key_basis, self.value, self.value_basis]

    def mapped(self, change: Any, rows: Tensor | None) -> Segment:
        names = ("key", "key_basis", "value", "value_basis")
        return replace(self, **self._head(change), **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Factorised:
    """Entries `among` [B, Hkv, N] of a layer, factorised and ready to be packed.

    key, value: coefficients [B, Hkv, N, r] of all open entries, 0 for the others, and the basis
    """

    among: Tensor
    key: LowRank
    value: LowRank

    def pack(
        self,
        key: Tensor,
        value: Tensor,
        position: Tensor,
        weight: Tensor | None,
        entries: Entries,
    ) -> LowRankSegment:
        """Take the coefficients of the entries that are packed; see `models/kv/write.py`."""
        made = from_mask(self.among.flatten(0, 1)).index
        index, filler = entries.own(made.view(*self.among.shape[:2], -1)), (position < 0)[..., None]
        parts = compact([entries.own(one.coefficients) for one in (self.key, self.value)], index)
        key, value = (part.masked_fill(filler, 0.0) for part in parts)
        key_basis, value_basis = (entries.own(one.basis) for one in (self.key, self.value))
        return LowRankSegment(position, weight, key, key_basis, value, value_basis)

    @property
    def saves(self) -> Tensor:
        """Rows [B] whose entries take less memory like this than as they were: r (n + Dh) < n Dh, keys and values."""
        count = self.among.sum(-1)
        stored, plain = torch.zeros_like(count), torch.zeros_like(count)
        for made in (self.key, self.value):
            # heads of a row are stored with as many directions as the widest of them
            rank, width = made.rank.amax(1, keepdim=True), made.basis.shape[3]
            stored = stored + stored_numbers(count, width, rank)  # type: ignore[arg-type]
            plain = plain + count * width
        return stored.sum(1) < plain.sum(1)

    def only(self, rows: Tensor) -> Factorised:
        """The same for some rows [B] of the batch."""
        return replace(self, among=self.among & rows[:, None, None])


def factorise_entries(
    entries: Entries, modality: int, rule: CacheRows, rank: int | None, energy: float | None
) -> Factorised:
    """Factorise the entries of one modality, for what rows of the others look at.

    rule: the rows that were observed; rank, energy: as in `importance.low_rank.factorise`
    Keys   in the metric of those rows, brought to keys without rotation
    Values each by the attention that it received from them
    Where no row of another modality may look at them, all rows that may are taken; where none is, distance is plain.
    """
    among = entries.present & (entries.modality == modality)
    attended = entries.attention(rule)
    batch, heads, width = entries.key.shape[0], entries.key.shape[1], entries.key.shape[3]
    sees = (attended.looks & among[:, :, None]).any(-1)
    others = sees & (attended.rows.modality != modality)[:, None]
    counted = torch.where(others.any(-1, keepdim=True), others, sees)
    query = attended.rows.query.reshape(batch, heads, -1, width)
    spread = query.shape[2] // counted.shape[2]
    metric = query_metric(query.float(), counted[:, :, None].expand(-1, -1, spread, -1).flatten(2))
    metric = entries.metric_before_rotation(metric, among)
    weight = attended.weight.view(batch, heads, spread, *attended.weight.shape[2:])
    got = (weight * counted[:, :, None, :, None]).sum((2, 3)).masked_fill(~among, 0.0)
    mean = got.sum(-1, keepdim=True) / among.sum(-1, keepdim=True).clamp(min=1)
    got = torch.where(mean > 0, got + _FLOOR * mean, 1.0)
    key = factorise(entries.unrotated(), metric, rank=_at_most(rank, width), energy=energy, valid=among)
    wide = entries.value.shape[3]
    value = factorise(entries.value, rank=_at_most(rank, wide), energy=energy, weights=got, valid=among)
    return Factorised(among, key.without_encoder(), value.without_encoder())


def _at_most(rank: int | None, width: int) -> int | None:
    return None if rank is None else min(rank, width)
