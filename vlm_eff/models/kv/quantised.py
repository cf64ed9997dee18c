"""Cache entries in few bits: packed once when they are compressed, read back when a layer attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.packed_decode import PackedPair
from vlm_eff.kernels.packed_decode.fast import extra_flops
from vlm_eff.kernels.quantise import Quantised, can_join, join, quantise
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.kv.segments import Segment

if TYPE_CHECKING:
    from vlm_eff.models.kv.view import Entries


@dataclass(frozen=True)
class QuantisedSegment(Segment):
    """Entries whose keys and values are quantised."""

    key: Quantised
    value: Quantised

    def read(self, dtype: torch.dtype, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        return self.key.read(dtype), self.value.read(dtype)

    def pair(self, bias: Tensor | None) -> PackedPair:
        return PackedPair(self.key, self.value, bias)

    def extra_flops(self, rows: int) -> int:
        return extra_flops(self.pair(None), rows)

    def contents(self) -> list[Tensor]:
        return [*self.key.buffers(), *self.value.buffers()]

    def joins(self, later: Segment) -> bool:
        if not isinstance(later, QuantisedSegment) or (self.weight is None) != (later.weight is None):
            return False
        return can_join(self.key, later.key) and can_join(self.value, later.value)

    def join(self, later: Sequence[Segment]) -> QuantisedSegment:
        parts = [self, *(part for part in later if isinstance(part, QuantisedSegment))]
        weights = [part.weight for part in parts if part.weight is not None]
        return QuantisedSegment(
            torch.cat([part.position for part in parts], 2),
            torch.cat(weights, 2) if weights else None,
            join([part.key for part in parts]),
            join([part.value for part in parts]),
        )

    def mapped(self, change: Any, rows: Tensor | None) -> Segment:
        return replace(self, **self._head(change), key=_mapped(self.key, change), value=_mapped(self.value, change))


def _mapped(packed: Quantised, change: Any) -> Quantised:
    named = {field.name: getattr(packed, field.name) for field in fields(packed)}
    return replace(packed, **{name: change(value) for name, value in named.items() if isinstance(value, Tensor)})


@part
@dataclass(frozen=True)
class InBits:
    """Store keys in one format and values in another."""

    key: Format
    value: Format

    def pack(
        self,
        key: Tensor,
        value: Tensor,
        position: Tensor,
        weight: Tensor | None,
        entries: Entries,
    ) -> QuantisedSegment:
        """Quantise once; see `models/kv/write.py`."""
        there = position >= 0
        made = (quantise(one, form, there) for one, form in ((key, self.key), (value, self.value)))
        return QuantisedSegment(position, weight, *made)
