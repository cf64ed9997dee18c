"""Scores that know modalities: text before images, and who uses an entry."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vlm_eff.core.cache import TEXT, CacheSums
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.entry_order import lexicographic
from vlm_eff.importance.keep import check_choice, is_number
from vlm_eff.importance.modality_entropy import entropy_scores, regularised_scores
from vlm_eff.kvcache.scores import EntryScore
from vlm_eff.models.kv.view import Entries


@part
@dataclass(frozen=True)
class TextFirst:
    """All text ranks before everything visual, and inside each of the two `score` decides.

    score: what an entry is worth among its own
    """

    score: EntryScore

    @property
    def needs(self) -> tuple[Observation, ...]:
        return self.score.needs

    def __call__(self, entries: Entries) -> Tensor:
        return lexicographic(self.score(entries), (entries.modality > TEXT).long(), entries.present)


@part
@dataclass(frozen=True)
class ModalityEntropy:
    """How evenly the modalities of queries use an entry: entropy of their mean attention.

    regularised: None ranks by the entropy alone, inside each modality of entries; a number adds that much of the
                 entropy, as a fraction of its maximum, to the attention that the entry received from a query that could
                 look, in multiples of the mean entry's
    faithful:    add it to the entry's share of all attention instead, as it is written down
    sums: whose attention; decode steps are text
    """

    regularised: float | None = None
    sums: CacheSums = field(default_factory=lambda: CacheSums("modality"))
    faithful: bool = False

    def __post_init__(self) -> None:
        given = self.regularised
        check_choice("faithful", self.faithful, (False, True))
        if given is not None and (not is_number(given) or given < 0):
            raise ConfigError(explain(f"weight={given!r}", "a number of at least 0", "Give the weight of the entropy"))
        if self.sums.kind != "modality":
            raise ConfigError(explain(f"sums of {self.sums.kind!r}", '"modality"', 'Use CacheSums("modality")'))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.sums,)

    def __call__(self, entries: Entries) -> Tensor:
        sums = entries.sums(self.sums)
        # the oldest entry is seen by every query, so the most looks of any are the queries of each modality
        queries = sums.looks.masked_fill(~entries.present[..., None], 0.0).amax((1, 2))
        means = sums.got / queries.clamp(min=1)[:, None, None]
        if self.regularised is None:
            return entropy_scores(means, entries.modality, entries.present)
        kinds = (queries > 0).sum(1)
        mass, weight = sums.got.sum(-1), means.new_full((1, 1, 1), self.regularised)
        if not self.faithful:
            mass = mass / sums.looks.sum(-1).clamp(min=1)
            # a share of all is small where there are many: in multiples of the mean share the weight means the same
            weight = weight / entries.present.sum(2, keepdim=True).clamp(min=1)
        return regularised_scores(means, mass, entries.present, weight, kinds)
