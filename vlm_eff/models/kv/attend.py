"""Attention of a layer whose cache is packed: group by group, merged by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.kernels.grouped_attention import attend_groups
from vlm_eff.models.kv.layer import Packed
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.kv.view import Traits

Group = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class PackedAttention:
    """Attends to a packed cache without ever holding all of it in full precision.

    Weights are not returned: there is no such matrix. whole: make one tensor of the cache after all and let the base
    function attend, because somebody observes this layer's attention in this call. factors: [B, 1 or Hkv, S] of the
    keys, see `table.py`.
    """

    packed: Packed
    traits: Traits
    rotary: Rotary | None
    whole: bool
    factors: Tensor | None = None

    def attend(
        self, run: Callable[..., Any], module: nn.Module, states: tuple[Tensor, Any, Any], mask: Any, kwargs: Any
    ) -> Any:
        """Output [B, Q, H, Dh] of query [B, H, Q, Dh] over the packed entries, and no weights."""
        query = states[0]
        if self.whole:
            key, value = self.packed.dense(self.rotary)
            key = self._scaled(key, 0)
            return run(module, query, key, value, mask, **kwargs)
        made, _ = attend_groups(query, self._groups(_added(mask)), self.traits.scaling, self.traits.softcap)
        return made.to(query.dtype).transpose(1, 2).contiguous(), None

    def _groups(self, mask: Tensor | None) -> Iterator[Group]:
        first = 0
        for segment in self.packed.segments:
            key, value = segment.read(self.packed.key.dtype, self.rotary)
            yield self._scaled(key, first), value, None if mask is None else mask[..., first : first + segment.count]
            # no group may outlive its turn
            del key, value
            first += segment.count
        key = self._scaled(self.packed.key, first)
        yield key, self.packed.value, None if mask is None else mask[..., first:]

    def _scaled(self, key: Tensor, first: int) -> Tensor:
        """Keys [B, Hkv, P, Dh] of the columns from `first` on, as queries of one modality see them."""
        if self.factors is None:
            return key
        return (key * self.factors[:, :, first : first + key.shape[2], None]).to(key.dtype)


def _added(mask: Tensor | None) -> Tensor | None:
    """A mask as what is added to the logits, in float32; what a float mask all but hides is hidden."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    return mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, float("-inf"))
