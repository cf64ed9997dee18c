"""What becomes of evicted entries when they are not lost: kept ones take them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_eff.core.cache import EVICTED, EXACT, TEXT, Stored
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.entry_assign import assign_by_key
from vlm_eff.importance.entry_merge import MergedEntries, merge_entries
from vlm_eff.importance.keep import check_choice
from vlm_eff.models.kv.view import Entries

Mixing = Literal["average", "pivotal", "weighted", "counted"]


@part
@dataclass(frozen=True)
class MergeInto:
    """Each evicted entry goes into the kept one with the most similar key, layer by layer and head by head.

    mixing: see `importance/entry_merge.py`; "counted" weighs by how many tokens entries stand for and adds the log of
            that number to the logits, the others are as published and count a merged entry once
    apart:  an entry goes only into one of its own modality, and nothing goes into protected entries or into the first
            `sinks` tokens of a sequence, whose values are near zero by design; False is as published
    visual: only evicted visual entries are merged, evicted text is lost
    What finds nobody to go into is lost.
    """

    mixing: Mixing = "counted"
    apart: bool = True
    visual: bool = True
    sinks: int = 4

    def __post_init__(self) -> None:
        check_choice("mixing", self.mixing, get_args(Mixing))
        if not isinstance(self.sinks, int) or isinstance(self.sinks, bool) or self.sinks < 0:
            raise ConfigError(
                explain(f"sinks={self.sinks!r}", "a whole number of at least 0", "Give a number of tokens")
            )

    def __call__(self, entries: Entries, chosen: Tensor, protected: Tensor) -> Stored:
        """The layer's new state; chosen, protected: [B, Hkv, N], protected ones are chosen too."""
        kept, form = chosen & entries.present, torch.where(chosen, EXACT, EVICTED).to(torch.int8)
        if bool((kept == entries.present).all()):
            return Stored(form)
        idle = torch.zeros_like(kept)
        if self.apart:
            idle = idle | protected | (entries.ordinal < self.sinks)
        if self.visual:
            idle = idle | (~kept & (entries.modality == TEXT))
        modality = entries.modality if self.apart else torch.zeros_like(entries.modality)
        found = assign_by_key(entries.key, kept, entries.present, modality, idle)
        stands = entries.weight if entries.weight is not None else torch.ones_like(entries.position).float()
        made = merge_entries(entries.key, entries.value, stands, kept, entries.present, found, self.mixing)
        weight = _back(made.multiplicity, made, stands) if self.mixing == "counted" else None
        return Stored(form, (), _back(made.keys, made, entries.key), _back(made.values, made, entries.value), weight)


def _back(merged: Tensor, made: MergedEntries, old: Tensor) -> Tensor:
    """`old` [B, Hkv, N, ...] with the contents of the kept entries replaced by `merged` [B, Hkv, K, ...]."""
    spare = torch.cat([old, old[:, :, :1]], 2)
    index = torch.where(made.valid, made.index, old.shape[2])
    if old.dim() == 4:
        index = index[..., None].expand(merged.shape)
    return spare.scatter(2, index, merged.to(old.dtype))[:, :, :-1]
