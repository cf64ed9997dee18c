"""Scores of cache entries from keys and values alone; no attention is needed.

keys, values [B, Hkv, S, Dh]; present [B, S] or [B, Hkv, S]; scores [B, Hkv, S] float32 (float64 for float64), higher =
keep, 0 for what is not present.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_eff.importance.entry_scores import real


def norms(vectors: Tensor, present: Tensor) -> Tensor:
    """Length of each vector: of values a score, of keys the opposite of one (L2 norm, arXiv:2406.11430)."""
    return real(vectors).square().sum(-1).sqrt().masked_fill(~_there(vectors, present), 0.0)


def key_difference(keys: Tensor, present: Tensor) -> Tensor:
    """How unlike the others a key is: minus its cosine to the mean of the unit keys (KeyDiff, arXiv:2504.15364)."""
    there = _there(keys, present)
    unit = _unit(keys, there)
    anchor = normalize(unit.sum(2, keepdim=True), dim=-1)
    return -(unit * anchor).sum(-1)


def mean_cosine(keys: Tensor, present: Tensor) -> Tensor:
    """Mean cosine of all pairs of different keys of a head [B, Hkv], 0 for fewer than two (MixKV's redundancy).

    Of the length of the sum of the unit keys alone, (|sum|^2 - n) / (n (n - 1)), without the pairs. Source: MixKV
    (ICLR 2026), whose official code reads the number from a file made for one model; this is the prompt's own.
    """
    there = _there(keys, present)
    count = there.sum(2)
    total = _unit(keys, there).sum(2).square().sum(-1)
    pairs = count * (count - 1)
    return torch.where(pairs > 0, (total - count) / pairs.clamp(min=1), 0.0)


def _unit(keys: Tensor, there: Tensor) -> Tensor:
    return normalize(real(keys), dim=-1).masked_fill(~there[..., None], 0.0)


def _there(vectors: Tensor, present: Tensor) -> Tensor:
    return (present if present.dim() == 3 else present[:, None]).expand(vectors.shape[:3])
