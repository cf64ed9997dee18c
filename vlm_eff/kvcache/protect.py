"""Entries that stay whatever they score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.keep import is_number
from vlm_eff.models.kv.view import Entries


@part
@dataclass(frozen=True)
class Protect:
    """The first `sinks` tokens and the last `recent` ones of a sequence, padding left out.

    share: as many of the last tokens as this fraction of the layer's budget, rounded up, if that is more than `recent`
    """

    sinks: int = 0
    recent: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("sinks", "recent"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(
                    explain(f"{name}={value!r}", "a whole number of at least 0", "Give a number of tokens")
                )
        if not is_number(self.share) or not 0 <= self.share <= 1:
            raise ConfigError(explain(f"a recent share of {self.share!r}", "a fraction in [0, 1]", "Give the share"))

    def mask(self, entries: Entries, count: Tensor) -> Tensor:
        """Protected entries [B, Hkv, N]; count: [B] entries that the layer keeps."""
        recent = torch.ceil(count.float() * self.share - 1e-6).long().clamp(min=self.recent)
        ordinal = entries.ordinal
        behind = entries.seen - recent
        return entries.present & ((ordinal < self.sinks) | (ordinal >= behind[:, None, None]))
