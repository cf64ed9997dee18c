"""Attention of a layer whose cache is packed: decode steps read entries in few bits as they are, all else is read back
group by group; results are merged by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.kernels.grouped_attention import attend_groups, merge
from vlm_eff.kernels.packed_decode import ExactPair, packed_decode
from vlm_eff.kernels.packed_decode.pairs import Pair
from vlm_eff.models.kv.layer import Packed
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.kv.view import Traits

Group = tuple[Tensor, Tensor, Tensor | None]

# query rows of a key head in a decode step; more of them would make the matrix of their logits large
_STEP = 64


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
        rows = query.shape[1] // self.packed.key.shape[1] * query.shape[2]
        packed = any(segment.pair(None) is not None for segment in self.packed.segments)
        if packed and self.factors is None and rows <= _STEP:
            made = self._step(query, _added(mask))
        else:
            made, _ = attend_groups(query, self._groups(_added(mask)), self.traits.scaling, self.traits.softcap)
        return made.to(query.dtype).transpose(1, 2).contiguous(), None

    def _step(self, query: Tensor, mask: Tensor | None) -> Tensor:
        """Output [B, H, Q, Dh] of a decode step."""
        pairs: list[Pair] = []
        first = 0
        for segment in self.packed.segments:
            pair = segment.pair(_columns(mask, first, segment.count, query))
            pairs += [] if pair is None else [pair]
            first += segment.count
        tail = self.packed.key.shape[2]
        pairs.append(ExactPair(self.packed.key, self.packed.value, _columns(mask, first, tail, query)))
        how = {"scaling": self.traits.scaling, "softcap": self.traits.softcap}
        made, total = packed_decode(query, pairs, **how, return_lse=True)
        if len(pairs) < len(self.packed.segments) + 1:
            others, share = attend_groups(query, self._groups(mask, packed=False), **how)
            made, _ = merge(made.to(total.dtype), total, others.to(total.dtype), share)
        return made

    def _groups(self, mask: Tensor | None, *, packed: bool = True) -> Iterator[Group]:
        """Every part, read back; without `packed` only what a decode step cannot read as it is."""
        first = 0
        for segment in self.packed.segments:
            if not packed and segment.pair(None) is not None:
                first += segment.count
                continue
            key, value = segment.read(self.packed.key.dtype, self.rotary)
            yield self._scaled(key, first), value, None if mask is None else mask[..., first : first + segment.count]
            # no group may outlive its turn
            del key, value
            first += segment.count
        if not packed:
            return
        key = self._scaled(self.packed.key, first)
        yield key, self.packed.value, None if mask is None else mask[..., first:]

    def _scaled(self, key: Tensor, first: int) -> Tensor:
        """Keys [B, Hkv, P, Dh] of the columns from `first` on, as queries of one modality see them."""
        if self.factors is None:
            return key
        return (key * self.factors[:, :, first : first + key.shape[2], None]).to(key.dtype)


def _columns(mask: Tensor | None, first: int, count: int, query: Tensor) -> Tensor | None:
    """Columns of a mask [B or 1, 1 or H, Q, S] for each row of the batch."""
    return None if mask is None else mask[..., first : first + count].expand(query.shape[0], -1, -1, -1)


def _added(mask: Tensor | None) -> Tensor | None:
    """A mask as what is added to the logits, in float32; what a float mask all but hides is hidden."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    return mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, float("-inf"))
