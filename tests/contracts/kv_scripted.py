"""A plugin that treats entries by their place alone, in every way in which the engine can store them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import EVICTED, EXACT, CacheSite, Compress, Stored
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.importance.select import top_k
from vlm_eff.kernels.format import Format
from vlm_eff.models.kv.quantised import InBits


@dataclass(frozen=True)
class Scripted(Plugin):
    """About half of the entries stay; which ones depends on place, layer and head.

    uneven: heads keep different numbers          merges: contents change, and entries stand for up to three
    packs:  most entries are stored in 8, some in 2 bits     steps: goes on while decoding
    """

    uneven: bool = False
    merges: bool = False
    packs: bool = False
    steps: bool = False

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"), CacheSite("step")) if self.steps else (CacheSite("prompt"),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.CACHE_ENTRIES})

    def bind(self, context: BindContext) -> Plugin:
        return self

    def at(self, site: CacheSite, view: Any) -> Compress:
        return Compress(view.layers, lambda layer: self._store(view.entries(layer)))

    def _store(self, entries: Any) -> Stored:
        batch, heads, count = entries.position.shape
        head = torch.arange(heads, device=entries.key.device)[None, :, None]
        lot = (entries.ordinal * 7919 + entries.layer * 104_729 + head * 1_299_709) * 2_654_435_761 % 1009
        left = (entries.seen[:, None] // 2).expand(-1, heads) + (head[:, :, 0] if self.uneven else 0)
        if self.steps:
            # an anchor that does not move: everything new stays until there is too much
            left = left.clamp(max=20)
        scores = lot.float().flatten(0, 1)
        stays = top_k(scores, left.flatten(), entries.present.flatten(0, 1)).view(batch, heads, count)
        form = torch.where(stays, EXACT, EVICTED).to(torch.int8)
        if self.packs:
            form = torch.where(stays & (lot % 4 > 0), torch.where(lot % 4 > 1, 1, 2), form).to(torch.int8)
        if not self.merges:
            return Stored(form, _FORMS if self.packs else ())
        weight = 1.0 + (lot % 3).float()
        return Stored(form, _FORMS if self.packs else (), entries.key * 0.9, _louder(entries.value), weight)


def _louder(value: Tensor) -> Tensor:
    return value * 1.1


_FORMS = (
    InBits(Format(8, "channel", 4), Format(8, "token")),
    InBits(Format(2, "channel"), Format(2, "token", 8)),
)

SCRIPTED: dict[str, Scripted] = {
    "even": Scripted(),
    "uneven": Scripted(uneven=True),
    "merged": Scripted(merges=True),
    "uneven-merged": Scripted(uneven=True, merges=True),
    "packed": Scripted(packs=True),
    "packed-merged": Scripted(uneven=True, merges=True, packs=True),
    "uneven-steps": Scripted(uneven=True, steps=True),
    "packed-steps": Scripted(packs=True, steps=True),
}
