"""The plugin that stores entries of some modalities as coefficients times a basis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from vlm_eff.core.cache import EXACT, IMAGE, TEXT, VIDEO, CachePlaces, CacheRows, CacheSite, Compress, Stored
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.importance.keep import check_ratio
from vlm_eff.kvcache.policy import check_cache
from vlm_eff.models.kv.factorised import Factorised, factorise_entries
from vlm_eff.models.kv.view import CacheView

MODALITIES = {"text": TEXT, "image": IMAGE, "video": VIDEO}


@part
@dataclass(frozen=True)
class LowRankCache(Plugin):
    """Factorises the entries of each modality in every layer, once after a prompt or turn.

    modalities: of "text", "image" and "video", each factorised by itself
    rank, energy: directions, or the fraction of the energy that they hold; exactly one
    rows:       the last text rows that say what matters; where text is factorised, as many drawn from the rest
    always:     factorise also where it takes more memory than the entries themselves
    """

    method: str
    modalities: tuple[str, ...]
    rank: int | None
    energy: float | None
    rows: int = 64
    always: bool = False

    def __post_init__(self) -> None:
        known = isinstance(self.modalities, tuple) and set(self.modalities) <= set(MODALITIES)
        if not known or not self.modalities or len(set(self.modalities)) < len(self.modalities):
            got, accepted = f"modalities={self.modalities!r}", f"different ones of {', '.join(MODALITIES)}, in a tuple"
            raise ConfigError(explain(got, accepted, 'Give modalities=("image",)'))
        if (self.rank is None) == (self.energy is None):
            got, accepted = f"rank={self.rank!r} and energy={self.energy!r}", "exactly one of the two"
            raise ConfigError(explain(got, accepted, "Give rank=16, or energy=0.95"))
        check_ratio("energy", self.energy)
        for name in ("rank", "rows"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(explain(f"{name}={value!r}", "a whole number of at least 1", "Give a number"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"),)

    @property
    def rule(self) -> CacheRows:
        """The query rows that say what matters."""
        return CacheRows("text", self.rows, random=self.rows if "text" in self.modalities else 0)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (CachePlaces(), self.rule)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.CACHE_FORM})

    def bind(self, context: BindContext) -> LowRankCache:
        check_cache(self.name, context)
        return self

    def at(self, site: CacheSite, view: CacheView) -> Compress | None:
        return Compress(view.layers, partial(self._store, view))

    def _store(self, view: CacheView, layer: int) -> Stored:
        entries = view.entries(layer)
        form = torch.full(entries.position.shape, EXACT, dtype=torch.int8, device=entries.position.device)
        forms: list[Factorised] = []
        for name in self.modalities:
            if not bool((entries.present & (entries.modality == MODALITIES[name])).any()):
                continue
            made = factorise_entries(entries, MODALITIES[name], self.rule, self.rank, self.energy)
            made = made if self.always else made.only(made.saves)
            if bool(made.among.any()):
                forms.append(made)
                form = form.masked_fill(made.among, len(forms))
        return Stored(form, tuple(forms))
