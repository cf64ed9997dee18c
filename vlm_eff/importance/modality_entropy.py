"""Which modalities of queries use a cache entry: the entropy of their shares, alone or beside the mass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from vlm_eff.core.errors import ConfigError, StateError, explain
from vlm_eff.importance.adaptive import shares
from vlm_eff.importance.entry_order import within_modality
from vlm_eff.importance.entry_scores import by_group, seen


class ModalitySums:
    """What each entry got from the rows of each modality so far, chunk by chunk; order and size do not matter.

    Sums are float64. Memory: M * Hkv numbers an entry.
    """

    def __init__(self, groups: int, modalities: int) -> None:
        """groups: key heads Hkv; modalities: M kinds of rows, numbered from 0."""
        if modalities < 1:
            raise ConfigError(explain(f"modalities={modalities}", "at least 1", "Give the number of kinds of tokens"))
        self.groups, self.modalities = groups, modalities
        self._sums: Tensor | None = None
        self._rows: Tensor | None = None

    def add(self, attention: Tensor, row_valid: Tensor, looks: Tensor, row_modality: Tensor) -> None:
        """Count rows in: as `ColumnSums.add`, with the modality of each row [B, R]."""
        kinds = one_hot(row_modality.clamp(0, self.modalities - 1), self.modalities).double()
        kinds = kinds * ((row_modality < self.modalities) & row_valid)[..., None]
        made = by_group(torch.einsum("bhrs,brm->bhsm", seen(attention, row_valid, looks).double(), kinds), self.groups)
        rows = kinds.sum(1)
        if self._sums is not None and self._rows is not None:
            made, rows = made + pad(self._sums, (0, 0, 0, made.shape[2] - self._sums.shape[2])), rows + self._rows
        self._sums, self._rows = made, rows

    def means(self) -> Tensor:
        """Mean over the rows of each modality, summed over the query heads of a group [B, Hkv, S, M] float64.

        A mean, so that the sizes of the modalities cancel; 0 for a modality without rows.
        """
        sums, rows = self._state()
        made: Tensor = sums / rows.clamp(min=1)[:, None, None]
        return made

    def mass(self) -> Tensor:
        """Sum over all rows [B, Hkv, S] float64."""
        sums, _ = self._state()
        return sums.sum(-1)

    def _state(self) -> tuple[Tensor, Tensor]:
        if self._sums is None or self._rows is None:
            raise StateError(explain("scores of no rows", "at least one chunk of attention", "Call add first"))
        return self._sums, self._rows


def entropy(means: Tensor) -> Tensor:
    """Entropy of each entry's shares among the modalities of queries [B, Hkv, S] float32, nats, from 0 to ln M.

    means: [B, Hkv, S, M] as `ModalitySums.means` gives them
    0 for an entry of a single modality's interest and for one that nobody looks at; ln M where all use it equally.
    """
    share = means.double() / means.double().sum(-1, keepdim=True).clamp(min=1e-300)
    return -torch.xlogy(share, share).sum(-1).float()


def entropy_scores(means: Tensor, modality: Tensor, present: Tensor) -> Tensor:
    """Rank of each entry's `entropy` inside its own modality, in (0, 1], best = 1 [B, Hkv, S] float32.

    modality: [B, S] or [B, Hkv, S] of the entries; present: [B, S] or [B, Hkv, S]
    Inside, because no image row can look at the text behind the last image: its entropy is 0 by construction, and the
    plain ranking would evict the question first.
    """
    return within_modality(entropy(means), modality, present)


def regularised_scores(
    means: Tensor, mass: Tensor, present: Tensor, weight: float | Tensor = 0.1, kinds: Tensor | None = None
) -> Tensor:
    """Share of the mass plus `weight` times the entropy as a fraction of ln M [B, Hkv, S] float32.

    mass: [B, Hkv, S], its shares are taken among what is present; weight: a number or [B, Hkv, 1], 0 ranks by mass
    alone; kinds: [B] how many modalities of queries each sequence has, where that is fewer than M. Entropy alone knows
    nothing of mass: an entry that nobody uses can be used equally little by all.
    """
    there = (present if present.dim() == 3 else present[:, None]).expand(mass.shape)
    share = shares(mass.flatten(0, 1), there.flatten(0, 1)).view(mass.shape)
    most = torch.full(mass.shape[:1], means.shape[-1], device=mass.device) if kinds is None else kinds
    most = most.clamp(min=1).double().log()[:, None, None]
    # with a single modality every entropy is 0
    made = share + weight * entropy(means) / torch.where(most > 0, most, 1.0)
    return made.masked_fill(~there, 0.0).float()
