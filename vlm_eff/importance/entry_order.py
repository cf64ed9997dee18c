"""Scores that rank entries within their modality, or one modality before another."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance.select import ranks


def lexicographic(scores: Tensor, priority: Tensor, present: Tensor) -> Tensor:
    """Scores that rank by class first and by the given score inside a class [B, Hkv, S] float32 (LOOK-M).

    scores: [B, Hkv, S]; priority: [B, S] or [B, Hkv, S] whole numbers, lower classes come first (text
        before image in LOOK-M, arXiv:2406.18139); present: [B, S] or [B, Hkv, S]
    The result is minus the rank, exact up to 2^24 entries. The official code adds or takes a large number instead, in
    fp16, where all images fall on the same value and their order is lost; this keeps it. -S for what is not present.
    """
    flat, there = _flat(scores, present)
    classes = _per_head(priority, scores)
    order = ranks(flat, there).argsort(dim=1)
    # what is not present comes after the last class; the stable sort keeps the order of the scores inside a class
    keys = torch.where(there, classes, classes.max() + 1 if classes.numel() else classes)
    order = order.gather(1, keys.gather(1, order).argsort(dim=1, stable=True))
    place = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    return -torch.where(there, rank, flat.shape[1]).view(scores.shape).float()


def within_modality(scores: Tensor, modality: Tensor, present: Tensor) -> Tensor:
    """Rank of each entry inside its own modality as a score in (0, 1], best = 1 [B, Hkv, S] float32; 0 if not present.

    scores: [B, Hkv, S]; modality: [B, S] or [B, Hkv, S] 0 text, 1 image, 2 video; present: [B, S] or [B, Hkv, S]
    The best `keep_ratio` of these keeps about that share of each modality, so that a score that one modality has for
    structural reasons only (see `modality_entropy.py`) decides nothing between modalities.
    """
    flat, there = _flat(scores, present)
    kinds = _per_head(modality, scores)
    made = torch.zeros(flat.shape, dtype=torch.float32, device=flat.device)
    for kind in sorted(set(modality.flatten().tolist())):
        inside = there & (kinds == kind)
        count = inside.sum(1, keepdim=True).clamp(min=1)
        made = torch.where(inside, 1 - ranks(flat, inside) / count, made)
    return made.view(scores.shape)


def _per_head(numbers: Tensor, scores: Tensor) -> Tensor:
    return (numbers if numbers.dim() == 3 else numbers[:, None]).expand(scores.shape).flatten(0, 1)


def _flat(scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    there = (present if present.dim() == 3 else present[:, None]).expand(scores.shape)
    return scores.flatten(0, 1), there.flatten(0, 1)
