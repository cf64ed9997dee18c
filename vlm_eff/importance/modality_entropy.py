"""Which modalities of queries use a cache entry: the entropy of their shares, alone or beside the mass."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance.adaptive import shares
from vlm_eff.importance.entry_order import within_modality


def entropy(means: Tensor) -> Tensor:
    """Entropy of each entry's shares among the modalities of queries [B, Hkv, S] float32, nats, from 0 to ln M.

    means: [B, Hkv, S, M] what an entry gets from the rows of each modality on average, summed over the query heads of
        its group: a mean, so that the sizes of the modalities cancel; 0 for a modality without rows
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
