"""What it costs a layer's output when an entry goes: second order, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.entry_quality import deletion_cost, modality_weights
from vlm_eff.importance.keep import check_choice, is_number
from vlm_eff.models.kv.view import Entries

DeletionForm = Literal["exact", "value", "key", "joint"]


@part
@dataclass(frozen=True)
class DeletionCost:
    """Squared change of the outputs of some query rows when the entry goes, summed over rows and heads of a group.

    form:   "exact" the deletion itself; "value", "key", "joint" the Gauss-Newton forms, see `deletion_cost`
    cross:  factor for pairs of a query and an entry of different modality
    centre: take each row's mean logit out first, for "key" and "joint", which move with a common offset
    metric: "value" measures a head's own output, "output" what the output projection makes of it
    rows:   which rows look
    """

    form: DeletionForm = "exact"
    cross: float = 1.0
    centre: bool = False
    metric: Literal["value", "output"] = "value"
    rows: CacheRows = field(default_factory=lambda: CacheRows("text", 32))

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("exact", "value", "key", "joint"))
        check_choice("metric", self.metric, ("value", "output"))
        check_choice("centre", self.centre, (True, False))
        if not is_number(self.cross) or self.cross < 0:
            raise ConfigError(explain(f"cross={self.cross!r}", "a number of at least 0", "Give the factor, 1 for none"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.rows,)

    def __call__(self, entries: Entries) -> Tensor:
        seen, values = entries.attention(self.rows, closed=True), entries.all_values()
        made = deletion_cost(
            seen.weight,
            seen.logits,
            values,
            seen.rows.valid,
            seen.looks,
            form=self.form,
            centre=self.centre,
            pair_weights=self._pairs(entries, seen.rows.modality, values.shape[2]),
            metric=entries.output_metric() if self.metric == "output" else None,
        )
        return made[:, :, values.shape[2] - entries.present.shape[2] :].float()

    def _pairs(self, entries: Entries, rows: Tensor, count: int) -> Tensor | None:
        if self.cross == 1:
            return None
        kinds = 3
        beta = torch.full((kinds, kinds), float(self.cross), device=rows.device).fill_diagonal_(1.0)
        # what the packed entries cost is not asked, so any modality will do
        padded = torch.nn.functional.pad(entries.modality, (count - entries.modality.shape[2], 0))
        return modality_weights(beta, rows.clamp(min=0).long(), padded.clamp(min=0).long())
