"""Which kept cache entry takes in each evicted one: by key, within rules about who may."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.importance.select import Selection, from_mask
from vlm_eff.kernels.bipartite_match import best_partner

# equal keys in different columns of one product differ by this much at most: they have to count as equal
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Assignment:
    """Which kept entry takes in each entry.

    target: [B, Hkv, S] int64 its column; a kept entry names itself; -1: evicted with nobody to go into, or not present
    cosine: [B, Hkv, S] float32 how alike the two keys are; 1 for a kept entry, 0 where there is no target
    """

    target: Tensor
    cosine: Tensor


def assign_by_key(keys: Tensor, kept: Tensor, present: Tensor, modality: Tensor, protected: Tensor) -> Assignment:
    """Give each evicted entry the kept entry whose key has the largest cosine (LOOK-M, arXiv:2406.18139).

    keys:      [B, Hkv, S, Dh] as they are cached; each row and KV head decides for itself
    kept:      [B, Hkv, S] bool; present: [B, Hkv, S] bool, False for padding and fillers, which take no part
    modality:  [B, S] or [B, Hkv, S] integers; entries go only into entries of their own number, so that a caller may
               number the spatial slots of a video as well
    protected: [B, Hkv, S] bool entries that take no part: sinks, whose values are near zero by design, and the window
    LOOK-M knows neither modality nor protection: pass zeros to follow it. Ties, to within 1e-6, go to the lower column;
    a key of zeros has cosine 0 to all.
    Cost: evicted * kept * Dh multiply-adds a row and head, twice on a GPU. The similarities are never built as a whole
    (`best_partner`): what is alive are the vectors themselves, in float32 on a CPU.
    """
    source, goal = _sides(kept, present, protected)
    flat = keys.flatten(0, 1).detach()
    wanted, offered = _kinds(modality, source, goal, kept)
    best, place = best_partner(
        take(flat, source.index),
        take(flat, goal.index),
        source_group=wanted,
        goal_group=offered,
        slack=_ROUNDING,
    )
    return _assigned(best.float(), place, source, goal, kept & present)


def per_head(x: Tensor, like: Tensor) -> Tensor:
    """[B, S], or [B, Hkv, S] as `like` is -> [B * Hkv, S]."""
    return (x if x.ndim == 3 else x[:, None]).expand(like.shape).flatten(0, 1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Vectors [N, K, D] of `x` [N, S, D] at columns `index` [N, K]."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def _sides(kept: Tensor, present: Tensor, protected: Tensor) -> tuple[Selection, Selection]:
    """Entries that look for a target, and entries that may be one; rows and heads flat."""
    free = (present & ~protected).flatten(0, 1)
    return from_mask(free & ~kept.flatten(0, 1)), from_mask(free & kept.flatten(0, 1))


def _kinds(modality: Tensor, source: Selection, goal: Selection, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of at least 0 of those who look [N, E] and of those who may be found [N, K]; -1 and -2: fillers."""
    kind = per_head(modality, kept).long()
    kind = kind - kind.amin() if kind.numel() else kind
    wanted = kind.gather(1, source.index).masked_fill(~source.valid, -1)
    return wanted, kind.gather(1, goal.index).masked_fill(~goal.valid, -2)


def _assigned(best: Tensor, place: Tensor, source: Selection, goal: Selection, kept: Tensor) -> Assignment:
    """The targets and cosines, from the best of each that looks [N, E] (-inf: nobody) and its place among the goals."""
    size, flat = kept.shape[2], kept.flatten(0, 1)
    # one spare column takes what fillers write
    target = torch.nn.functional.pad(torch.where(flat, torch.arange(size, device=kept.device), -1), (0, 1))
    like = torch.nn.functional.pad(flat.float(), (0, 1))
    if goal.index.shape[1]:
        column = torch.where(best > -torch.inf, source.index, size)
        target.scatter_(1, column, goal.index.gather(1, place))
        like.scatter_(1, column, best.clamp(-1, 1))
    return Assignment(target[:, :size].reshape(kept.shape), like[:, :size].reshape(kept.shape))
