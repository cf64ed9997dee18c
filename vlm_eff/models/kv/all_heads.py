"""What a plugin sees of a cache whose heads lie on several ranks: the entries of all of them, gathered when asked for.

Plugins decide about all heads on every rank, from the same numbers; `models/kv/write.py` carries out what concerns the
heads of its own rank. Which columns a layer has is decided by all heads together, so it is the same on every rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vlm_eff.core.cache import PADDING, CacheGradients, CacheRows, CacheSums
from vlm_eff.models.kv.book import Sums
from vlm_eff.models.kv.view import Entries, RowAttention, modality_at
from vlm_eff.models.ranks import Ranks

# of all heads, gathered at the first look
_CONTENTS = ("key", "value", "weight", "closed")


class AllHeads(Entries):
    """The open entries of one layer with those that other ranks store, see `Entries`.

    What nobody looks at is not gathered. Every rank asks the same plugin about the same numbers, so all look alike.
    """

    _mine: Entries
    _ranks: Ranks

    def __init__(self, mine: Entries, ranks: Ranks) -> None:
        shared = ("layer", "seen", "_cache", "_record", "_traits", "_rotary")
        self.__dict__.update({name: getattr(mine, name) for name in shared}, _mine=mine, _ranks=ranks)

    def __getattr__(self, name: str) -> Any:
        makers = {"position": self._position, "modality": self._modality, "present": self._present}
        if name in _CONTENTS:
            made = getattr(self._mine, name)
            made = None if made is None else self._ranks.all_keys(made)
        elif name in makers:
            made = makers[name]()
        else:
            raise AttributeError(name)
        self.__dict__[name] = made
        return made

    def _position(self) -> Tensor:
        mine = self._mine.position
        if not self._cache.compressed:
            # all heads store everything
            return mine[:, :1].expand(-1, self._ranks.keys, -1)
        return self._ranks.all_keys(mine)

    def _modality(self) -> Tensor:
        return modality_at(self._record, self.position)

    def _present(self) -> Tensor:
        return self.modality != PADDING

    @property
    def stored(self) -> Entries:
        return self._mine

    @property
    def entry_bytes(self) -> int:
        return self._mine.entry_bytes * self._ranks.keys // self._mine.position.shape[1]

    def own(self, states: Tensor) -> Tensor:
        return self._ranks.own(states) if self._mine.position.shape[1] < self._ranks.keys else states

    def attention(self, rule: CacheRows, *, closed: bool = False) -> RowAttention:
        mine, ranks = self._mine.attention(rule, closed=closed), self._ranks
        rows = replace(mine.rows, query=ranks.all_queries(mine.rows.query))
        return RowAttention(
            ranks.all_queries(mine.weight), ranks.all_queries(mine.logits), ranks.all_keys(mine.looks), rows
        )

    def received(self, rule: CacheRows) -> Tensor:
        return self._ranks.all_keys(self._mine.received(rule))

    def all_values(self) -> Tensor:
        return self._ranks.all_keys(self._mine.all_values())

    def output_metric(self) -> Tensor:
        return self._ranks.all_queries(self._mine.output_metric(), dim=0)

    def sums(self, kind: CacheSums) -> Sums:
        mine = self._mine.sums(kind)
        return Sums(self._ranks.all_keys(mine.got), self._ranks.all_keys(mine.looks))

    def gradient(self, wanted: CacheGradients) -> Tensor:
        return self._ranks.all_keys(self._mine.gradient(wanted))
