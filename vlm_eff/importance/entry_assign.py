"""Which kept cache entry takes in each evicted one: by key or by position, within rules about who may."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.importance.select import Selection, from_mask
from vlm_eff.importance.similarity import blocks

# equal keys in different columns of one product differ by this much at most: they have to count as equal
_ROUNDING = 1e-6
# one block of distances holds at most this many numbers, as the blocks of similarities do
_BLOCK = 1 << 24


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
    Cost: evicted * kept * Dh multiply-adds a row and head. At most 64 MiB of similarities are alive at a time, and half
    as much again of masks, whatever S is; the least that a block can hold is one line over all rows and heads.
    """
    source, goal = _sides(kept, present, protected)
    flat = keys.flatten(0, 1)
    parts = blocks(take(flat, source.index), source.valid, take(flat, goal.index))
    return _choose(parts, source, goal, kept & present, modality)


def assign_by_position(
    position: Tensor, kept: Tensor, present: Tensor, modality: Tensor, protected: Tensor
) -> Assignment:
    """Give each evicted entry the kept entry nearest to it in the sequence (Elastic Cache, arXiv:2407.18121).

    position: [B, S] or [B, Hkv, S] integers below 2**24; the others as in `assign_by_key`, and so are ties and memory.
    Keys are not looked at: `cosine` is 0 for every evicted entry.
    """
    source, goal = _sides(kept, present, protected)
    place = per_head(position, kept).float()
    parts = _nearness(place.gather(1, source.index), place.gather(1, goal.index))
    made = _choose(parts, source, goal, kept & present, modality)
    return Assignment(made.target, (kept & present).float())


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


def _nearness(source: Tensor, goal: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Negative distances of positions in blocks of lines: (first line, [N, C, K])."""
    size = max(1, _BLOCK // max(1, goal.numel()))
    for start in range(0, source.shape[1], size):
        yield start, (source[:, start : start + size, None] - goal[:, None]).abs_().neg_()


def _choose(
    parts: Iterator[tuple[int, Tensor]], source: Selection, goal: Selection, kept: Tensor, modality: Tensor
) -> Assignment:
    """The best allowed target of each line; `parts` gives scores [N, C, K] of some lines at a time."""
    size, flat = kept.shape[2], kept.flatten(0, 1)
    # one spare column takes what fillers write
    own = torch.where(flat, torch.arange(size, device=kept.device), -1)
    target = torch.nn.functional.pad(own, (0, 1))
    like = torch.nn.functional.pad(flat.float(), (0, 1))
    kind = per_head(modality, kept)
    wanted, offered = kind.gather(1, source.index), kind.gather(1, goal.index)
    # with no target at all there is no maximum to take
    for start, score in parts if goal.index.shape[1] else ():
        part = slice(start, start + score.shape[1])
        allowed = (wanted[:, part, None] == offered[:, None]) & goal.valid[:, None]
        score = score.masked_fill_(~allowed, -torch.inf)
        best = score.amax(-1)
        first = (score >= (best - _ROUNDING)[:, :, None]).view(torch.uint8).argmax(-1)
        found = source.valid[:, part] & (best > -torch.inf)
        place = torch.where(found, source.index[:, part], size)
        target.scatter_(1, place, goal.index.gather(1, first))
        like.scatter_(1, place, best)
    return Assignment(target[:, :size].reshape(kept.shape), like[:, :size].reshape(kept.shape))
